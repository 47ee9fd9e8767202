"""Latent attention: transformers' own values and gradients, cached = full, what a step computes, meshes, counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import NamedSharding
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from model import axes, masks
from model.count import flops_per_token, num_params
from model.decode.cache import KVCache
from model.decode.generate import generate
from model.families import Decoder, context
from model.mla import LatentAttention, expanding_is_less
from model.parts import Latent, Rope
from model.weights import by_name
from tests.model import tiny
from tests.model.decode.test_cache import extended
from tests.model.test_meshes import MISTAKE, batch, captured, compiled, compiled_afresh  # noqa: F401

LATENT = Latent(kv_rank=16, content_dim=6, rope_dim=4, value_dim=5, query_rank=8)
CONFIG = dataclasses.replace(
    tiny.LLAMA,
    num_heads=8,
    num_kv_heads=8,
    latent=LATENT,
    attention_scale=0.4,
    rope=Rope(theta=100.0, interleaved=True),
)
PLAIN = dataclasses.replace(CONFIG, latent=dataclasses.replace(LATENT, query_rank=0))
NAMES = {  # ours: theirs, and the dims into which their [out, in] splits
    "query": ("q_proj", "(KH) D -> D K 1 H"),
    "query_down": ("q_a_proj", "Q D -> D Q"),
    "query_norm/scale": ("q_a_layernorm", ""),
    "query_up": ("q_b_proj", "(KH) Q -> Q K 1 H"),
    "latent_down": ("kv_a_proj_with_mqa", "F D -> D F"),
    "latent_norm/scale": ("kv_a_layernorm", ""),
    "out": ("o_proj", "D (KV) -> K 1 V D"),
}


@functools.cache
def model(config=CONFIG):
    return tiny.decoder(config)


def attention(config, seed=0):
    layer = model(config).stack.segments[0][0]
    return jax.tree.map(lambda w: w[seed], layer.attention)


def as_theirs(tree):
    """Our tensors (weights or their gradients) as transformers has them, by name."""
    found = {}
    leaves = {path: np.asarray(leaf) for path, leaf in by_name(tree).items()}
    for path, w in leaves.items():
        if path in NAMES:
            flat = w.reshape(-1, w.shape[-1]) if path == "out" else w.reshape(w.shape[0], -1)
            found[NAMES[path][0] + ".weight"] = w if w.ndim == 1 else flat.T
    both = np.concatenate([leaves["key_up"], leaves["value_up"]], axis=1)  # of each head, one after the other
    return found | {"kv_b_proj.weight": both.reshape(-1, LATENT.kv_rank)}


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_values_and_gradients_are_those_of_transformers(version, implementation):
    """V2 with plain queries, V3 with a latent. Inputs so small that the epsilon of the latents' norms counts."""
    config = dataclasses.replace(CONFIG if version == "v3" else PLAIN, attention_scale=0.0, attention=implementation)
    settings = dict(hidden_size=32, num_attention_heads=8, num_key_value_heads=8, rms_norm_eps=0.01)
    settings |= dict(kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, num_hidden_layers=1)
    settings |= dict(
        q_lora_rank=8 if version == "v3" else None, rope_parameters=dict(rope_type="default", rope_theta=100.0)
    )
    if version == "v2":
        theirs = v2.DeepseekV2Config(**settings, attn_implementation="eager")
        reference, angles = v2.DeepseekV2Attention(theirs, 0), v2.DeepseekV2RotaryEmbedding(theirs)
    else:
        theirs = v3.DeepseekV3Config(**settings, attn_implementation="eager")
        reference, angles = v3.DeepseekV3Attention(theirs, 0), v3.DeepseekV3RotaryEmbedding(theirs)
    ours, length = attention(config), 150  # more than a block
    reference.load_state_dict({name: torch.tensor(w) for name, w in as_theirs(ours).items()})
    rng = np.random.default_rng(0)
    x, dy = 3e-3 * rng.normal(size=(2, length, 32)), rng.normal(size=(2, length, 32))
    x, dy = x.astype(np.float32), dy.astype(np.float32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (2, length))

    @jax.jit
    def run(ours, x):
        shared = context(config, masks.packed(jnp.ones_like(places), places), places)
        return jax.vjp(lambda ours, x: ours(x, shared)[0], ours, x)

    y, back = run(ours, x)
    d_ours, dx = back(dy)
    x = torch.tensor(x, requires_grad=True)
    unseen = torch.full((length, length), -1e30).triu(1)[None, None]
    expected = reference(x, attention_mask=unseen, position_embeddings=angles(x, torch.tensor(places).long()))[0]
    expected.backward(torch.tensor(dy))
    close = lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    close(y, expected.detach().numpy())
    close(dx, x.grad.numpy())
    for name, found in as_theirs(d_ours).items():
        close(found, reference.get_parameter(name).grad.numpy())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["query latent", "plain queries"])
def test_cached_equals_full(config, rows):
    """Prompts of 5, 2 and 7 tokens, padded on the left to 8, whose keys are expanded; then pieces whose are not."""
    assert [expanding_is_less(LATENT, width, 20) for width in (8, 1, 3)] == [True, False, False]
    rng = np.random.default_rng(0)
    row_tokens, lengths = rng.integers(0, 64, (rows, 16), np.int32), np.array([5, 2, 7])[:rows]
    full = jax.jit(Decoder.logits)(model(config), row_tokens)
    cache, start = KVCache.create(config, rows, 20), lengths - 8
    assert sum(buffer.size for buffer in cache.keys + cache.values) == config.num_layers * rows * 20 * (16 + 4)
    for width in (8, 1, 1, 3):
        places = start[:, None] + np.arange(width)
        real, places = places >= 0, np.maximum(places, 0)
        tokens = np.take_along_axis(row_tokens, places, axis=1)
        logits, cache = extended(model(config), cache, tokens, real.astype(np.int32), places.astype(np.int32))
        expected = np.take_along_axis(full, places[..., None], axis=1)
        np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=2e-5, rtol=2e-5)
        start = start + width


def test_the_cheaper_way_is_chosen():
    """DeepSeek-V3's attention: against the multiply-adds that XLA counts in each way."""
    latent = Latent(kv_rank=512, content_dim=128, rope_dim=64, value_dim=128, query_rank=1536)
    slots, product = 2048, lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)

    @functools.cache
    def flops(queries, expand):
        if expand:
            pairs = [(slots, 512, 256), (queries, 192, slots), (queries, slots, 128)]
        else:
            pairs = [(queries, 512, 256), (queries, 576, slots), (queries, slots, 576)]
        return sum(
            jax.jit(jnp.matmul).lower(product(a, b), product(b, c)).compile().cost_analysis()["flops"]
            for a, b, c in pairs
        )

    for queries in (1, 128, 140, 150, 256, 2048):
        assert expanding_is_less(latent, queries, slots) == (flops(queries, True) < flops(queries, False)), queries


def test_a_step_makes_no_keys_of_all_slots():
    """It takes the FLOPs of its weights and of attention to the latents: with expanded keys it would be TIMES."""
    slots = 640
    cache = KVCache.create(CONFIG, 1, slots)
    one = np.ones((1, 1), np.int32)
    program = extended.lower(model(), cache, one, one, one).compile()
    cost = program.cost_analysis()["flops"]
    weights = 2 * (num_params(CONFIG) - 64 * 32)
    attended = CONFIG.num_layers * 2 * slots * 8 * (16 + 4) * 2
    assert weights + attended < cost < 1.5 * (weights + attended)


@pytest.mark.parametrize(
    "shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)], ids=lambda shape: "x".join(map(str, shape))
)
def test_every_mesh_equals_one_device(shape):
    expected, expected_loss = jax.device_get(on_one_device())
    mesh = axes.make_mesh(dict(zip(axes.MESH_AXES, shape, strict=True)))
    CONFIG.check_mesh(dict(mesh.shape))
    with axes.use_mesh(mesh):
        target = jax.eval_shape(lambda key: Decoder(CONFIG, nnx.Rngs(key)), jax.random.key(0))
        place = lambda leaf, like: jax.device_put(np.asarray(leaf), NamedSharding(mesh, like.sharding.spec))
        likes, tree = jax.tree.flatten(target)
        split = tree.unflatten(map(place, jax.tree.leaves(model()), likes))
        rows = jax.device_put(batch(), axes.batch_sharding(mesh))
        program, log = captured(lambda: compiled(split, rows))
        gradients, loss = program(split, rows)
    assert MISTAKE not in log, log
    np.testing.assert_allclose(loss.total, expected_loss.total, rtol=1e-6)
    for gradient, reference, like in zip(*map(jax.tree.leaves, (gradients, expected)), likes, strict=True):
        assert gradient.sharding.spec == like.sharding.spec
        scale = max(1, np.abs(reference).max())
        np.testing.assert_allclose(np.asarray(gradient) / scale, reference / scale, atol=1e-5)


@functools.cache
def on_one_device():
    return compiled(model(), batch())(model(), batch())


def test_generation_on_a_mesh():
    prompts = [[5, 6, 7, 8, 9], [11], [20, 21, 22]]
    run = lambda model, prompts=prompts: generate(model, prompts, jax.random.key(0), max_new_tokens=12).tokens
    expected = run(model())
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        np.testing.assert_array_equal(run(tiny.decoder(CONFIG)), expected)
    with axes.use_mesh(axes.make_mesh({"tensor": 2}, jax.devices()[:2])):
        np.testing.assert_array_equal(run(tiny.decoder(CONFIG), prompts[:1]), expected[:1])


def test_counts():
    """Parameters of V3's attention as transformers has it; FLOPs of attention by hand: scores of content and rotary
    features, and values of another width, with half of the tokens before it on average, and twice that backward."""
    with torch.device("meta"):
        theirs = v3.DeepseekV3Attention(
            v3.DeepseekV3Config(rope_parameters=dict(rope_type="default", rope_theta=1e4)), 0
        )
    latent = Latent(kv_rank=512, content_dim=128, rope_dim=64, value_dim=128, query_rank=1536)
    config = dataclasses.replace(CONFIG, embed_dim=7168, table_dim=0, num_heads=128, num_kv_heads=0, latent=latent)
    layer = jax.eval_shape(lambda: LatentAttention(config, nnx.Rngs(0), "global", causal=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(layer)) == sum(p.numel() for p in theirs.parameters())
    longer = flops_per_token(CONFIG, 512) - flops_per_token(CONFIG, 256)
    assert longer == 3 * CONFIG.num_layers * 8 * 2 * (6 + 4 + 5) * 128


def test_what_cannot_be():
    for field in ("qk_norm", "qkv_bias", "out_bias"):
        with pytest.raises(ValueError, match="neither biases nor norms of heads"):
            dataclasses.replace(CONFIG, **{field: True})
    with pytest.raises(ValueError, match=r"model\.latent\.query_rank 8 cannot be split over mesh axis fsdp=16"):
        dataclasses.replace(CONFIG, mlp_dim=64).check_mesh({"fsdp": 16})
