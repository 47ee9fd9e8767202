"""Latent attention has transformers' values and gradients, and decodes from a cache at the expected cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from model import axes
from model.architectures import Decoder, context
from model.attention import masks, mla
from model.attention.mla import LatentAttention, expanding_is_less
from model.count import flops_per_token, num_params
from model.decode.cache import KVCache
from model.decode.generate import generate
from model.parts import Latent
from model.weights import by_name
from tests.model import tiny
from tests.model.decode.test_cache import extended

CONFIG, LATENT = tiny.LATENT, tiny.LATENT.latent
PLAIN = dataclasses.replace(CONFIG, latent=dataclasses.replace(LATENT, query_rank=0))
NAMES = {
    "query": "q_proj",
    "query_down": "q_a_proj",
    "query_norm/scale": "q_a_layernorm",
    "query_up": "q_b_proj",
    "latent_down": "kv_a_proj_with_mqa",
    "latent_norm/scale": "kv_a_layernorm",
    "out": "o_proj",
}


@functools.cache
def model(config=CONFIG):
    return tiny.drawn(config)


def as_theirs(tree):
    """Returns our tensors (weights or their gradients) by name in transformers' layout, [out, in] with flat heads."""
    leaves = {path: np.asarray(leaf) for path, leaf in by_name(tree).items()}
    inputs = lambda path, w: w.size // w.shape[-1] if path == "out" else w.shape[0]
    found = {
        f"{theirs}.weight": leaves[path].reshape(inputs(path, leaves[path]), -1).T.squeeze()
        for path, theirs in NAMES.items()
        if path in leaves
    }
    both = np.concatenate([leaves["key_up"], leaves["value_up"]], axis=1)  # per head, concatenated
    return found | {"kv_b_proj.weight": both.reshape(-1, LATENT.kv_rank)}


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_values_and_gradients_are_those_of_transformers(version, implementation):
    """V2 has plain queries, V3 has a latent for them. Inputs are so small that the epsilon of the norms matters."""
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
    ours = jax.tree.map(lambda w: w[0], model(config).stack.segments[0][0].attention)
    length = 150  # more than one block
    reference.load_state_dict({name: torch.tensor(w) for name, w in as_theirs(ours).items()})
    rng = np.random.default_rng(0)
    x, dy = 3e-3 * rng.normal(size=(2, length, 32)), rng.normal(size=(2, length, 32))
    x, dy = x.astype(np.float32), dy.astype(np.float32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (2, length))

    @jax.jit
    def run(ours, x, places):  # arguments, because XLA compiles slowly with large constants
        shared = context(config, masks.packed(jnp.ones_like(places), places), places)
        return jax.vjp(lambda ours, x: ours(x, shared)[0], ours, x)

    y, back = run(ours, x, places)
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
    """Prompts of 5, 2 and 7 tokens, left-padded to 8, use expanded keys; the pieces after them do not."""
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


@pytest.mark.parametrize("queries", [1, 12, 28, 512])
def test_the_way_with_fewer_flops_is_chosen(queries, monkeypatch):
    """XLA counts fewer FLOPs for expanded keys from 20 queries on, for 512 slots; the code must choose the same."""
    latent = Latent(kv_rank=64, content_dim=16, rope_dim=8, value_dim=16)
    config = dataclasses.replace(PLAIN, latent=latent)
    layer = LatentAttention(config, nnx.Rngs(0), "global", causal=True)
    ones = np.ones((2, queries), np.int32)

    def flops(expanded):
        def run(layer, cache, x):
            cache, mask = cache.admit(ones, ones)
            return layer(x, context(config, mask, ones), cache, 0)[0]

        monkeypatch.setattr(mla, "expanding_is_less", lambda *_: expanded)
        program = jax.jit(run).lower(layer, KVCache.create(config, 2, 512), np.ones((2, queries, 32), np.float32))
        return program.compile().cost_analysis()["flops"]

    assert expanding_is_less(latent, queries, 512) == (flops(True) < flops(False)) == (queries > 19)


def test_a_step_makes_no_keys_of_all_slots():
    """A step costs the FLOPs of its weights and of attention to the latents.

    Attention with expanded keys would cost 4.8 times as much.
    """
    slots, one = 640, np.ones((1, 1), np.int32)
    program = extended.lower(model(), KVCache.create(CONFIG, 1, slots), one, one, one).compile()
    products = 2 * (num_params(CONFIG) - 64 * 32) + 2 * CONFIG.num_layers * slots * 8 * 2 * (16 + 4)
    assert products < program.cost_analysis()["flops"] < 1.5 * products


def test_generation_on_a_mesh():
    prompts = [[5, 6, 7, 8, 9], [11], [20, 21, 22]]
    run = lambda model: generate(model, prompts, jax.random.key(0), max_new_tokens=12).tokens
    expected = run(model())
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        np.testing.assert_array_equal(run(tiny.drawn(CONFIG)), expected)


def test_counts():
    """Parameters of V3's attention equal transformers', and FLOPs of attention equal a count by hand.

    The count covers scores of content and rotary features, values of another width, half of the earlier tokens on
    average, and twice that backward.
    """
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
        with pytest.raises(ValueError, match="neither biases nor q/k norms"):
            dataclasses.replace(CONFIG, **{field: True})
    with pytest.raises(ValueError, match=r"model\.latent\.query_rank 8 cannot be split over mesh axis fsdp=16"):
        dataclasses.replace(CONFIG, mlp_dim=64).check_mesh({"fsdp": 16})
