"""Rotary positions (RoFormer, arXiv:2104.09864), in the half-split layout of LLaMA and GPT-NeoX checkpoints.

Learned positions are a table in families.py, added to the embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotation(NamedTuple):
    """Cosines and sines of each position's angles, float32 [B, T, head_dim / 2]; made once for all layers."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions_BT: jax.Array, head_dim: int, theta: float) -> Rotation:
    """Angle position * theta^(-2i / head_dim) for pair i. float32: bfloat16 cannot tell late positions apart."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, turn: Rotation) -> jax.Array:
    """Turn feature pairs (i, i + head_dim / 2) of queries or keys, [B, T, ..., head_dim]; keeps the dtype."""
    heads = tuple(range(2, x.ndim - 1))
    cos, sin = (jnp.expand_dims(t, heads) for t in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
