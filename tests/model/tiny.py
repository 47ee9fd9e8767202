"""Small models that together use every part of the architecture, and rows of packed documents for them."""

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from model import architectures, axes
from model.config import ModelConfig, Rope
from model.parts import Experts, Latent
from model.weights import name

_SHARED = dict(vocab_size=64, num_layers=2, embed_dim=32, mlp_dim=64, max_length=64, init_std=0.2, dtype="float32")
# Rotary positions, grouped queries, gated feed-forward, an untied output layer.
LLAMA = ModelConfig(**_SHARED, num_heads=16, num_kv_heads=8, head_dim=4, norm_epsilon=3e-3, rope=Rope(theta=100.0))
# Learned positions, LayerNorm, biases, a tied output layer.
GPT = ModelConfig(
    **_SHARED,
    num_heads=8,
    norm="layernorm",
    position="learned",
    activation="gelu_tanh",
    gated=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=True,
)
BOTH = {"llama": LLAMA, "gpt": GPT}
# An encoder-decoder with relative positions and experts in every other layer.
SWITCH = ModelConfig(
    **_SHARED,
    architecture="encoder_decoder",
    num_heads=8,
    position="relative",
    relative_buckets=8,
    relative_distance=10,
    mlp_pattern=("dense", "sparse"),
    experts=Experts(count=4, per_token=2, mlp_dim=16),
)
# Latent attention.
LATENT = ModelConfig(
    **_SHARED,
    num_heads=8,
    latent=Latent(kv_rank=16, content_dim=6, rope_dim=4, value_dim=5, query_rank=8),
    attention_scale=0.4,
    rope=Rope(theta=100.0, interleaved=True),
)


def drawn(config: ModelConfig, seed: int = 0):
    """Returns a model with random parameters, including norms and biases, because values of 0 or 1 hide mistakes."""
    return filled(jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))), seed)


def filled(abstract, seed: int = 0):
    """Returns a module of these shapes on the current mesh; norms are near 1, everything else near 0.

    It uses numpy, because a JAX program that draws them takes as long to compile as one that trains.
    """
    rng, mesh = np.random.default_rng(seed), jax.sharding.get_mesh()

    def draw(path, leaf):
        value = name(path).endswith("norm/scale") + 0.2 * rng.standard_normal(leaf.shape)
        where = NamedSharding(mesh, leaf.sharding.spec) if axes.has_mesh() else None
        return jax.device_put(value.astype(leaf.dtype), where)

    return jax.tree.map_with_path(draw, abstract)


def packed_rows(rows: int, length: int, seed: int = 0):
    """Returns (tokens, segments, positions) of `rows` rows, each with three documents and padding at the end."""
    rng = np.random.default_rng(seed)
    segments, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        cuts = [0, *np.sort(rng.choice(np.arange(1, length - 1), 3, replace=False))]
        for segment in (1, 2, 3):
            start, end = cuts[segment - 1 : segment + 1]
            segments[row, start:end] = segment
            positions[row, start:end] = np.arange(end - start)
    return rng.integers(0, 64, (rows, length), np.int32), segments, positions
