"""KVCache: keys and values of the tokens seen so far, or the latents that they are computed from (attention/mla.py).

Buffers have a fixed size, so that a loop of any length is one program, and each layer has its own, so that updates are
in place. Rows may hold prompts of different lengths with left padding: all rows write the same slot at a time, and
`segments` (0 for padding and unwritten slots) masks slots without a token.

Left out: batches whose rows start and finish independently, each at its own slot.

Dims: B batch, T new tokens, S slots, K key/value heads, H head_dim, F features of a latent and its rotary key.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model import axes
from model.attention.masks import Mask
from model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """The cache of a batch. All methods return new caches."""

    # Buffers have the compute dtype, and the order of dims in which attention contracts them, so that nothing is
    # transposed at each token. With one row they lack the dim B: XLA's CPU compiler drops a dim of 1 from a product,
    # which would copy every buffer between its update and its use.
    keys: tuple[jax.Array, ...]  # per layer [B, K, S, H]; latent attention: [B, S, F], replicated over `tensor`
    values: tuple[jax.Array, ...]  # per layer [B, K, H, S]; latent attention: empty
    segments_BS: jax.Array  # int32
    positions_BS: jax.Array  # int32
    index: jax.Array  # int32 scalar: slots written

    @classmethod
    def create(cls, config: ModelConfig, batch: int, length: int) -> "KVCache":
        """Makes an empty cache of `length` slots on the current mesh; rows and heads are sharded as in the layers."""

        def zeros(*dims, dtype=jnp.int32):
            names, shape = zip(*dims, strict=True)
            return jnp.zeros(shape, dtype, out_sharding=axes.out(*names))

        def buffers(*dims):
            return tuple(zeros(*dims[batch == 1 :], dtype=config.dtype) for _ in range(blocks))

        blocks = sum(len(segment.kinds) * segment.repeats for segment in config.segments())
        rows, slots = ("batch", batch), ("slots", length)
        if config.latent:
            keys = buffers(rows, slots, ("features", config.latent.kv_rank + config.latent.rope_dim))
            values = ()
        else:
            heads, features = ("kv_heads", config.num_kv_heads), ("head_dim", config.head_dim)
            keys, values = buffers(rows, heads, slots, features), buffers(rows, heads, features, slots)
        return cls(
            keys=keys,
            values=values,
            segments_BS=zeros(rows, slots),
            positions_BS=zeros(rows, slots),
            index=jnp.zeros((), jnp.int32),
        )

    def admit(self, segments_BT: jax.Array, positions_BT: jax.Array) -> tuple["KVCache", Mask]:
        """Registers T new tokens; returns the cache, and the mask to call the model with for them."""
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, self.index, axis=1)
        segments_BS, positions_BS = write(self.segments_BS, segments_BT), write(self.positions_BS, positions_BT)
        cache = dataclasses.replace(self, segments_BS=segments_BS, positions_BS=positions_BS)
        return cache, Mask(segments_BT, positions_BT, segments_BS, positions_BS)

    def extend(self, layer: int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple["KVCache", jax.Array, jax.Array]:
        """Writes a layer's new keys and values; returns the cache and all keys and values of the layer [B, S, K, H]."""
        keys, k_BSKH = _write(self.keys[layer], k_BTKH, (0, 2, 1, 3), self.index)
        values, v_BSKH = _write(self.values[layer], v_BTKH, (0, 2, 3, 1), self.index)
        cache = dataclasses.replace(self, keys=_put(self.keys, layer, keys), values=_put(self.values, layer, values))
        return cache, k_BSKH, v_BSKH

    def extend_latent(self, layer: int, latent_BTF: jax.Array) -> tuple["KVCache", jax.Array]:
        """Writes a layer's new latents; returns the cache and all latents of the layer [B, S, F]."""
        keys, latent_BSF = _write(self.keys[layer], latent_BTF, (0, 1, 2), self.index)
        return dataclasses.replace(self, keys=_put(self.keys, layer, keys)), latent_BSF

    def rows(self, of_B: jax.Array) -> "KVCache":
        """Returns the cache of B rows that each continue the row of this cache that `of_B` has, int32 [B]."""
        take = lambda array: axes.rows(array, of_B)
        keys, values = jax.tree.map(take, (self.keys, self.values))
        return KVCache(keys, values, take(self.segments_BS), take(self.positions_BS), self.index)

    def advance(self, tokens: int) -> "KVCache":
        """Moves to the slots after these tokens, once all layers have run."""
        return dataclasses.replace(self, index=self.index + tokens)


def _put(buffers, layer, new):
    return *buffers[:layer], new, *buffers[layer + 1 :]


def _write(buffer, new, order, index):
    """Writes `new` ([B, T, K, H] or [B, T, F]) into a buffer whose dims are in `order`.

    Returns:
      (the buffer, a view of it with the dims in the order of `new`).
    """
    if axes.has_mesh():  # a cache's slots are not split
        spec = jax.typeof(new).sharding.spec
        new = jax.sharding.reshard(new, jax.sharding.PartitionSpec(spec[0], None, *spec[2:]))
    new = jnp.transpose(new, order)
    squeezed = buffer.ndim < new.ndim
    slots = order.index(1) - squeezed
    buffer = jax.lax.dynamic_update_slice_in_dim(buffer, new[0] if squeezed else new, index, axis=slots)
    view = buffer
    if squeezed:
        view = buffer[None]
        if axes.has_mesh():  # jax 0.12: both operands must split B alike, even over axes of size 1
            view = jax.sharding.reshard(view, jax.typeof(new).sharding.spec)
    return buffer, jnp.transpose(view, [order.index(dim) for dim in range(new.ndim)])
