"""ModelConfig refuses contradictions, and its FLOP counts equal those of the program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.interpreters import partial_eval as pe

from model import architectures
from model.adapt import tuning
from model.architectures import Decoder
from model.config import ModelConfig
from model.count import flops_per_token, names
from model.parts import Experts
from model.weights import replaced, trained
from tests.model import tiny


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 0}, "model.vocab_size is 0"),
        ({"num_layers": 2.0}, "model.num_layers is 2.0"),
        ({"norm": "batchnorm"}, "model.norm is 'batchnorm'; choose from rmsnorm, layernorm"),
        ({"remat": "some"}, "model.remat is 'some'"),
        ({"embed_dim": 33, "head_dim": 0}, "model.embed_dim 33 is not a multiple of model.num_heads 16"),
        ({"num_kv_heads": 5}, "model.num_heads 16 is not a multiple of model.num_kv_heads 5"),
        ({"head_dim": 3}, "model.head_dim 3 is odd"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"num_kv_heads": -2}, "model.num_kv_heads is -2; it must be a whole number of at least 0"),
        (
            {"head": "masked"},
            "model.head is 'masked'; choose for the architecture decoder from language_model, sequence, tok",
        ),
        (
            {"architecture": "encoder"},
            "model.head is 'language_model'; choose for the architecture encoder from masked, seq",
        ),
        ({"architecture": "encoder_decoder", "position": "alibi"}, "model.position alibi"),
        ({"share_groups": 2, "attention_pattern": ("global", "local"), "window": 4}, "model.share_groups"),
        ({"share_groups": 2, "architecture": "encoder_decoder"}, "model.share_groups"),
        ({"experts": dict(count=4, per_token=2, mlp_dim=8)}, "model.experts is set, but no layer"),
        ({"mlp_pattern": ("sparse",)}, "model.mlp_pattern has sparse layers"),
        ({"rope": dict(thetta=1.0)}, "model.rope.thetta is not a field of Rope"),
        (
            {"rope": dict(scaling="llama3", original_length=16, low_factor=4.0, high_factor=1.0)},
            "model.rope.low_factor is 4.0; it must be smaller than model.rope.high_factor, which is 1.0",
        ),
        ({"latent": dict(kv_rank=4, content_dim=2)}, "model.latent lacks rope_dim, value_dim"),
        ({"attention_pattern": "global"}, r"model.attention_pattern is 'global'; it must be a list, like \('global',"),
    ],
)
def test_an_impossible_value_names_its_field(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(tiny.LLAMA, **change)


def test_an_unknown_field_is_an_error():
    with pytest.raises(TypeError, match="num_head"):
        ModelConfig(vocab_size=1, num_layers=1, embed_dim=2, num_head=1, mlp_dim=1, max_length=1)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ({"tensor": 3}, r"model.num_kv_heads 8 cannot be split over mesh axis tensor=3; .* work: 1, 2, 4"),
        ({"fsdp": 5}, r"model.embed_dim 32 cannot be split over mesh axis fsdp=5; .* work: 1, 2, 4, 8$"),
        ({"stage": 8, "data": 2}, r"model.num_layers 2 cannot be split over mesh axis stage=8; .* work: 1, 2$"),
    ],
)
def test_a_mesh_that_cannot_hold_the_model_is_refused(mesh, words):
    with pytest.raises(ValueError, match=words):
        tiny.LLAMA.check_mesh(mesh)


def test_layers_of_several_kinds_that_stages_cannot_share():
    """Every kind, or repeat of a pattern, is split separately."""
    gemma = dataclasses.replace(tiny.LLAMA, num_layers=26, attention_pattern=("local", "global"), window=8)
    with pytest.raises(ValueError, match=r"num_layers 26 \(13 repeats of 2 layers\) .* stage=4; .* work: 1, 13$"):
        gemma.check_mesh({"stage": 4})
    gemma.check_mesh({"stage": 13})
    with pytest.raises(ValueError, match=r"num_layers 4 \(1 alike in a row\) cannot be split .* stage=2; .* work: 1$"):
        dataclasses.replace(tiny.LLAMA, num_layers=4, cuts=(1,)).check_mesh({"stage": 2})


def test_a_vocabulary_that_cannot_be_split_gets_a_size_that_can():
    with pytest.raises(ValueError, match=r"model.vocab_size 50257 .* tensor=2; 50258 would divide"):
        dataclasses.replace(tiny.LLAMA, vocab_size=50257).check_mesh({"tensor": 2})
    tiny.LLAMA.check_mesh({"data": 3, "fsdp": 8, "tensor": 8})


def dot_flops(jaxpr) -> int:
    """Returns 2 FLOPs per multiply-add of all matmuls in a program; loops count each iteration."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[dim] for dim in contracted)
        inner = [
            p for p in jax.tree.leaves(list(equation.params.values())) if hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(dot_flops(getattr(p, "jaxpr", p)) for p in inner)
    return total


@pytest.mark.parametrize("name", tiny.BOTH)
def test_flops_are_those_of_the_program(name):
    config = dataclasses.replace(tiny.BOTH[name], attention="xla")
    rows, length = 3, 24
    tokens = jnp.zeros((rows, length), jnp.int32)
    model = jax.eval_shape(lambda key: Decoder(config, nnx.Rngs(key)), jax.random.key(0))
    forward = jax.make_jaxpr(Decoder.logits)(model, tokens)
    training = jax.make_jaxpr(jax.grad(lambda model: model.logits(tokens).sum()))(model)
    # This attention also computes what the mask hides, and so processes twice the keys that are counted.
    for program, flag in ((forward, False), (training, True)):
        assert dot_flops(program.jaxpr) == flops_per_token(config, 2 * length, training=flag) * rows * length


TUNED = {  # method, train_only; passes through each layer's weights, through attention, through the output layer
    "all": ({}, (), (3, 3), (3, 3), 3),
    "lora": (dict(method="lora", rank=3), (), (2, 2), (3, 3), 2),
    "adapter": (dict(method="adapter", reduction=8), (), (2, 2), (3, 3), 2),
    "prompt": (dict(method="prompt"), (), (2, 2), (3, 3), 2),
    "last layer": ({}, (("layer/.*/-1/", True), (".*", False)), (1, 3), (1, 3), 2),
    "output layer": ({}, (("unembedding", True), (".*", False)), (1, 1), (1, 1), 2),
}


@pytest.mark.parametrize("name", TUNED)
def test_flops_of_what_trains(name):
    """FLOPs equal counts by hand and those of the program, which omits the unused gradients of frozen weights."""
    fields, train_only, passes, attention, output = TUNED[name]
    made = tuning.make(fields, train_only)
    config = dataclasses.replace(tiny.LLAMA, attention="xla")
    config = dataclasses.replace(config, cuts=made.cuts(config, names(config)))
    rows, length = 3, 24
    model = jax.eval_shape(lambda key: made.apply(architectures.make(config, nnx.Rngs(key)), key), jax.random.key(0))
    params = trained(model)
    d, f, heads, kv = 32, 64, 16 * 4, 8 * 4
    a_layer = 2 * d * heads + 2 * d * kv + 3 * d * f
    added = {
        "lora": 2 * 3 * 3 * (2 * (d + heads) + 2 * (d + kv) + 3 * (d + f)),  # layers, passes, rank
        "adapter": 2 * 3 * 2 * d * (d // 8),
    }
    by_hand = a_layer * sum(passes) + heads * length * sum(attention) + d * 64 * output + added.get(name, 0)
    assert flops_per_token(config, length, trains=params) == 2 * by_hand
    tokens = jnp.zeros((rows, length), jnp.int32)
    loss = lambda params, model: replaced(model, params).logits(tokens).sum()
    program = jax.make_jaxpr(jax.value_and_grad(loss))(params, model).jaxpr
    program = pe.dce_jaxpr(program, [True] * len(program.outvars))[0]
    assert dot_flops(program) == flops_per_token(config, 2 * length, trains=params) * rows * length


def test_flops_of_an_encoder_decoder_are_those_of_the_program():
    config = dataclasses.replace(tiny.SWITCH, mlp_pattern=("dense",), experts=None, attention="xla", encoder_layers=3)
    rows, length, target = 2, 24, 8
    model = jax.eval_shape(lambda key: architectures.make(config, nnx.Rngs(key)), jax.random.key(0))
    zeros = lambda width: jnp.zeros((rows, width), jnp.int32)
    source = architectures.Source(*(zeros(length),) * 3)
    program = jax.make_jaxpr(lambda model: model.logits(zeros(target), source=source))(model)
    counted = flops_per_token(config, length, target_length=target, training=False) * rows * length
    # The decoder's self-attention also computes what the mask hides.
    hidden = rows * 2 * 2 * config.num_layers * config.num_heads * config.head_dim * target * target / 2
    assert dot_flops(program.jaxpr) == counted + hidden


def test_a_window_of_an_encoder_has_two_sides():
    """Attention's matmuls cost twice those of a decoder with the same window; everything else is equal."""
    decoder = dataclasses.replace(tiny.LLAMA, attention_pattern=("local",), window=8)
    encoder = dataclasses.replace(decoder, architecture="encoder", head="none")
    weights = {config: flops_per_token(dataclasses.replace(config, window=1), 64) for config in (decoder, encoder)}
    wide = {config: flops_per_token(config, 64) for config in (decoder, encoder)}
    assert wide[encoder] - weights[encoder] == pytest.approx(2 * (wide[decoder] - weights[decoder]))


def test_flops_of_experts_are_those_that_a_token_goes_to():
    """2 of 4 experts of 16 features cost as much as a dense layer of 32, plus the router."""
    config = dataclasses.replace(tiny.LLAMA, mlp_pattern=("sparse",), experts=Experts(4, 2, 16))
    dense = dataclasses.replace(tiny.LLAMA, mlp_dim=32)
    router = 6 * config.num_layers * config.embed_dim * 4
    assert flops_per_token(config, 32) == flops_per_token(dense, 32) + router


def test_impossible_experts_are_refused():
    good = dict(count=8, per_token=2, mlp_dim=16)
    for field, bad in [
        ("count", dict(count=0)),
        ("per_token", dict(per_token=9)),
        ("per_token", dict(groups=4, per_token=3)),
        ("groups", dict(groups=3)),
        ("groups_per_token", dict(groups=4, groups_per_token=5)),
        ("group_score", dict(groups=8, groups_per_token=4, group_score="top2")),
        ("score", dict(score="tanh")),
        ("normalize", dict(per_token=1)),
        ("shared_gate", dict(shared_gate=True)),
        ("capacity_factor", dict(capacity=2, capacity_factor=1.0)),
    ]:
        with pytest.raises(ValueError, match=f"experts.{field}"):
            Experts(**{**good, **bad})
