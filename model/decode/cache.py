"""KVCache: the keys and values of the tokens seen so far, for all layers.

One fixed-size buffer, so that a loop of any length is one program. Rows may hold prompts of different lengths, padded on
the left: then all of them write the same slot at the same time, and `segments` (0 for padding and for slots not yet
written) keeps what is not there from being seen.

Dims: L layers, B batch, T new tokens, S slots, K key/value heads, H head_dim.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model import axes, masks
from model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    keys: jax.Array  # [L, B, S, K, H] in the compute dtype
    values: jax.Array
    segments: jax.Array  # int32 [B, S]
    positions: jax.Array  # int32 [B, S]
    index: jax.Array  # int32 scalar: slots written

    @classmethod
    def create(cls, config: ModelConfig, batch: int, length: int) -> "KVCache":
        """An empty cache of `length` slots, on the mesh that is set: rows like a batch's, heads over `tensor`."""
        shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
        names = ("layers", "batch", "length", "kv_heads", "head_dim")
        zeros = lambda shape, dtype, *names: jnp.zeros(shape, dtype, out_sharding=axes.out(*names))
        keys, values = (zeros(shape, config.dtype, *names) for _ in range(2))
        segments, positions = (zeros((batch, length), jnp.int32, "batch", "length") for _ in range(2))
        return cls(keys, values, segments, positions, jnp.zeros((), jnp.int32))

    def admit(self, segments_BT: jax.Array, positions_BT: jax.Array) -> tuple["KVCache", masks.Mask]:
        """Make room for T tokens; returns what the model is called with: a cache and the mask of these tokens."""
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, self.index, axis=1)
        segments, positions = write(self.segments, segments_BT), write(self.positions, positions_BT)
        cache = dataclasses.replace(self, segments=segments, positions=positions)
        return cache, masks.Mask(segments_BT, positions_BT, segments, positions)

    def extend(self, layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple["KVCache", jax.Array, jax.Array]:
        """Write a layer's new keys and values; returns the cache and all of the layer's, [B, S, K, H]."""
        at = (layer, 0, self.index, 0, 0)
        keys = jax.lax.dynamic_update_slice(self.keys, k_BTKH[None], at)
        values = jax.lax.dynamic_update_slice(self.values, v_BTKH[None], at)
        cache = dataclasses.replace(self, keys=keys, values=values)
        return cache, *(jax.lax.dynamic_index_in_dim(a, layer, keepdims=False) for a in (keys, values))

    def advance(self, tokens: int) -> "KVCache":
        """After all layers: the next tokens go behind these."""
        return dataclasses.replace(self, index=self.index + tokens)
