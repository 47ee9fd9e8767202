"""Positions: rotary angles and their rescalings, ALiBi's slopes, T5's relative buckets.

Learned positions are a table in inputs.py, added to the embedding.

Dims: B batch, T queries, S keys, K key/value heads, G queries per key/value head, R buckets.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.config import ModelConfig, Rope
from model.platforms import table
from model.roles import Role
from model.weights import param


class Rotation(NamedTuple):
    """Cosines and sines of each position's angles, float32 [B, T, head_dim / 2]; computed once for all layers."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions_BT: jax.Array, head_dim: int, rope: Rope, *, local: bool = False) -> Rotation:
    """Returns the angles position * frequency of each feature pair, in float32: bfloat16 would round late positions.

    Args:
      local: for layers with a sliding window, which may have a different theta.
    """
    if local and rope.local_theta:
        rope = Rope(theta=rope.local_theta)
    angles = positions_BT[..., None].astype(jnp.float32) * _frequencies(head_dim, rope)
    return Rotation(jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor)


def _frequencies(head_dim: int, rope: Rope) -> jax.Array:
    """Returns theta^(-2i / head_dim) for pair i, rescaled; float32 [head_dim / 2]."""
    base = rope.theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if rope.scaling == "linear":
        return base / rope.factor
    if rope.scaling == "llama3":
        # Keep short wavelengths, divide long ones, and interpolate between (Meta's llama-models, apply_scaling).
        turns = rope.original_length * base / (2 * math.pi)  # over the original context
        keep = jnp.clip((turns - rope.low_factor) / (rope.high_factor - rope.low_factor), 0, 1)
    elif rope.scaling == "yarn":
        # The pair that rotates `beta` times over the original context; between the two, interpolate linearly in i.
        pair = lambda beta: (
            head_dim * math.log(rope.original_length / (beta * 2 * math.pi)) / (2 * math.log(rope.theta))
        )
        low = max(math.floor(pair(rope.beta_fast)), 0)
        high = min(math.ceil(pair(rope.beta_slow)), head_dim - 1)
        keep = 1 - jnp.clip((jnp.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    else:
        return base
    return base * keep + base / rope.factor * (1 - keep)


def yarn_factor(factor: float, weight: float = 1.0) -> float:
    """Returns how much sharper attention gets for a context `factor` times longer (arXiv:2309.00071, equation 22)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def rotate(x: jax.Array, turn: Rotation, interleaved: bool = False) -> jax.Array:
    """Rotates feature pairs of queries or keys, [B, T, ..., head_dim]; keeps the dtype.

    Pairs are (i, i + head_dim / 2), or (2i, 2i + 1) if interleaved.
    """
    heads = tuple(range(2, x.ndim - 1))
    cos, sin = (jnp.expand_dims(t, heads) for t in turn)
    wide = x.astype(jnp.float32)
    if interleaved:
        first, second = wide[..., ::2], wide[..., 1::2]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(x.shape)
    else:
        first, second = jnp.split(wide, 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """Returns how much each head subtracts from a score per position of distance (arXiv:2108.12409, section 3).

    If the number of heads is not a power of two, this follows the published code: the slopes of the next smaller power,
    then every other slope of the next larger one.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]


class RelativeBias(nnx.Module):
    """A learned score per head and distance bucket, shared by the layers of a stack (T5, arXiv:1910.10683)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, causal: bool):
        k, g = config.num_kv_heads, config.num_heads // config.num_kv_heads
        self.buckets, self.furthest, self.causal = config.relative_buckets, config.relative_distance, causal
        init = nnx.initializers.normal(config.init_std)
        shape, names = (config.relative_buckets, k, g), ("positions", "kv_heads", "group")
        self.table = param(rngs, shape, names, init, jnp.dtype(config.param_dtype), role=Role.DISTANCE)

    def __call__(self, distance_BTS: jax.Array) -> jax.Array:
        """Returns float32 [B, K, G, T, S], given key position - query position."""
        table_RKG = axes.gather(self.table[...].astype(jnp.float32))
        buckets = relative_bucket(distance_BTS, self.buckets, self.furthest, self.causal)
        if table.here().looks_up and axes.size("stage") == 1:  # jax does not support this lookup inside a shard_map
            sharding = axes.out(
                "batch", "length", None, "kv_heads", "group", shape=(*buckets.shape, *table_RKG.shape[1:])
            )
            scores = table_RKG.at[buckets].get(out_sharding=sharding, mode="promise_in_bounds")
            return jnp.transpose(scores, (0, 3, 4, 1, 2))
        # A one-hot matmul, as in t5x: the gradient of a lookup would add B T S rows to a few, one after another.
        return _contracted(table_RKG, buckets)


@jax.checkpoint
def _contracted(table_RKG, buckets_BTS):
    """Returns table[buckets], [B, K, G, T, S]; exact, because each sum has only one nonzero term."""
    chosen_BTSR = jax.nn.one_hot(buckets_BTS, table_RKG.shape[0], dtype=table_RKG.dtype)
    b, t, s, _ = chosen_BTSR.shape
    sharding = axes.out("batch", "kv_heads", "group", "length", None, shape=(b, *table_RKG.shape[1:], t, s))
    return jnp.einsum("BTSR,RKG->BKGTS", chosen_BTSR, table_RKG, precision="highest", out_sharding=sharding)


def relative_bucket(distance: jax.Array, buckets: int, furthest: int, causal: bool) -> jax.Array:
    """Returns buckets of distances: one each for small ones, logarithmic for larger ones (mesh-tensorflow's T5)."""
    offset: jax.Array | int
    if causal:
        offset, distance = 0, jnp.maximum(-distance, 0)
    else:
        buckets //= 2
        offset, distance = buckets * (distance > 0), jnp.abs(distance)
    exact = buckets // 2
    scaled = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(furthest / exact)
    large = jnp.minimum(exact + (scaled * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return offset + jnp.where(distance < exact, distance, large)
