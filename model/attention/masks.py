"""Attention masks, kept as segments and positions and turned into booleans block by block.

A full [batch, queries, keys] mask is never stored: attention computes the block that it works on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import axes


class Mask(NamedTuple):
    """A query sees keys of its own segment; a causal query only those whose position is not after its own.

    Positions count from 0 inside a segment, so packed documents, left padding and caches need no other rules.
    Segment 0 is padding: only padding sees it, which keeps the softmax of padded rows finite.

    Dims: B batch, T queries, S keys. All int32.
    """

    q_segments_BT: jax.Array
    q_positions_BT: jax.Array
    kv_segments_BS: jax.Array
    kv_positions_BS: jax.Array

    def block(self, queries: slice, keys: slice, causal: bool, window: int = 0) -> jax.Array:
        """Returns bool [B, T', S'] for some queries and keys; True: may attend.

        Args:
          window: a query sees itself and window - 1 positions before it (arXiv:2004.05150); 0: all.
        """
        visible = self.q_segments_BT[:, queries, None] == self.kv_segments_BS[:, None, keys]
        if causal or window:
            distance = self.distance(queries, keys)
        if causal:
            visible &= distance <= 0
        if window:
            visible &= jnp.abs(distance) < window
        return visible

    def onto(self, segments_BS: jax.Array, positions_BS: jax.Array) -> "Mask":
        """Returns the mask of the same queries and other keys, whose ids are small and replicated over the length."""
        keys = (axes.place(ids_BS, "batch", None) for ids_BS in (segments_BS, positions_BS))
        return Mask(self.q_segments_BT, self.q_positions_BT, *keys)

    def distance(self, queries: slice, keys: slice) -> jax.Array:
        """Returns int32 [B, T', S']: key position - query position."""
        return self.kv_positions_BS[:, None, keys] - self.q_positions_BT[:, queries, None]


def packed(segments_BT: jax.Array, positions_BT: jax.Array) -> Mask:
    """Returns the mask of self-attention inside rows of packed documents."""
    return Mask(segments_BT, positions_BT, segments_BT, positions_BT).onto(segments_BT, positions_BT)


def default_segments(tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns segments and positions of rows with one document each and no padding."""
    positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    return jnp.ones_like(tokens_BT), positions
