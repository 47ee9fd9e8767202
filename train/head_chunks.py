"""The output layer chunk by chunk along the length: what every loss over a vocabulary is made of.

Logits are made, used and dropped, so that [batch, length, vocabulary] never exists. Tokens stay where they are on the
mesh (shard_map over the axes of rows and their length), each device sums its own gradient of the output table, and one
reduction at the end adds them. The vocabulary may be split over `tensor`.

Dims: B rows, T length, C chunk of the length, D features, V vocabulary, n chunks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model import axes
from model.output import Output
from model.platforms import table

# Logits in flight on one device: tokens (rows x chunk) times the vocabulary.
CHUNK_TOKENS = 1024


class Head(NamedTuple):
    """An output layer's arrays as products read them; its softcap is no array and goes beside them."""

    x_BTD: jax.Array  # in the compute dtype
    w_VD: jax.Array  # in the same, whole along fsdp
    b_V: jax.Array | None  # float32


def head(output: Output) -> Head:
    bias = None if output.bias is None else output.bias[...].astype(jnp.float32)
    return Head(output.x_BTE, axes.gather(output.table[...].astype(output.x_BTE.dtype)), bias)


def on_rows(run, heads: tuple[Head, ...], arrays_BT: tuple[jax.Array, ...], *, add: bool):
    """`run(names, heads, arrays)` where the rows are: on each device with those that it has.

    Args:
      run: `names` are the mesh axes whose devices have rows of their own.
      add: the results are sums over tokens, to be added over devices; otherwise they are [B, T, ...].
    """
    shape = arrays_BT[0].shape if arrays_BT else heads[0].x_BTD.shape[:2]
    # Rows on one device each need no map; XLA's partitioner fails where a map's devices are all one.
    names = axes.splitting("batch", "length", shape=shape)
    if not names:
        return run(names, heads, arrays_BT)

    def local(heads, arrays_BT):
        # The transpose of this cast is the one sum of the table's gradient over devices.
        cast = lambda head: head._replace(**jax.lax.pcast({"w_VD": head.w_VD, "b_V": head.b_V}, names, to="varying"))
        found = run(names, tuple(map(cast, heads)), arrays_BT)
        return jax.lax.psum(found, names) if add else found

    rows, whole = axes.spec("batch", "length", shape=shape), PartitionSpec()
    specs = (tuple(Head(rows, whole, whole) for _ in heads), tuple(rows for _ in arrays_BT))
    return jax.shard_map(local, axis_names=set(names), in_specs=specs, out_specs=whole if add else rows)(
        heads, arrays_BT
    )


def logits(head: Head, softcap: float, x_BCD: jax.Array) -> jax.Array:
    """float32 [B, C, V], of one chunk of the head's features."""
    logits_BCV = jnp.einsum(
        "BCD,VD->BCV",
        x_BCD,
        head.w_VD,
        preferred_element_type=_product_dtype(head.w_VD.dtype),
        out_sharding=axes.out("batch", "length", "vocab"),
    ).astype(jnp.float32)
    if head.b_V is not None:
        logits_BCV += head.b_V
    return softcap * jnp.tanh(logits_BCV / softcap) if softcap else logits_BCV


def through_softcap(dlogits_BCV, logits_BCV, softcap: float):
    """The gradient by logits that were not yet capped."""
    return dlogits_BCV * (1 - jnp.square(logits_BCV / softcap)) if softcap else dlogits_BCV


def is_target(targets_BC, vocab: int) -> jax.Array:
    """bool [B, C, V]. A comparison and not a look-up: the vocabulary may be split over devices, and it fuses with the
    rest."""
    return jax.lax.broadcasted_iota(jnp.int32, (1, 1, vocab), 2) == targets_BC[..., None]


class TableGradient(NamedTuple):
    """What a scan over chunks sums, in float32 whatever the dtype of the table is."""

    dw_DV: jax.Array
    db_V: jax.Array | None

    @staticmethod
    def zeros(head: Head) -> "TableGradient":
        return TableGradient(
            jnp.zeros_like(head.w_VD.T, jnp.float32), None if head.b_V is None else jnp.zeros_like(head.b_V)
        )


def back(head: Head, x_BCD, dlogits_BCV, sums: TableGradient) -> tuple[jax.Array, TableGradient]:
    """The gradient by a chunk's features, and `sums` with what the chunk adds to them.

    Args:
      dlogits_BCV: float32, by logits before the softcap.
    """
    dw_DV, db_V = sums
    db_V = None if db_V is None else db_V + dlogits_BCV.sum((0, 1))
    dlogits_BCV = dlogits_BCV.astype(x_BCD.dtype)
    dx_BCD = jnp.einsum("BCV,VD->BCD", dlogits_BCV, head.w_VD, out_sharding=axes.out("batch", "length", "features"))
    # In this order because a CPU copies the first operand transposed: the smaller one.
    dw_DV += jax.lax.dot_general(
        x_BCD,
        dlogits_BCV,
        (((0, 1), (0, 1)), ((), ())),
        preferred_element_type=_product_dtype(head.w_VD.dtype),
        out_sharding=axes.out("features", "vocab"),
    )
    return dx_BCD, TableGradient(dw_DV, db_V)


def whole_gradient(head: Head, dx_nBCD, sums: TableGradient) -> Head:
    """The head's gradient, from those of all chunks' features and the table's."""
    return Head(joined(dx_nBCD, head.x_BTD.shape[1]), sums.dw_DV.T.astype(head.w_VD.dtype), sums.db_V)


def chunks(tree_BT):
    """Each [B, T, ...] as chunks [n, B, C, ...] for a scan; padded at the end with zeros."""
    b, t = jax.tree.leaves(tree_BT)[0].shape[:2]
    # At least two, so that the whole batch's logits never exist at once.
    n = min(t, max(2, -(-b * t // CHUNK_TOKENS)))
    size = -(-t // n)

    def cut(a):
        if n * size != t:
            a = jnp.pad(a, ((0, 0), (0, n * size - t)) + ((0, 0),) * (a.ndim - 2))
        return jnp.swapaxes(a.reshape(b, n, size, *a.shape[2:]), 0, 1)

    return jax.tree.map(cut, tree_BT)


def joined(a_nBC, length: int) -> jax.Array:
    """The way back of `chunks`: [n, B, C, ...] -> [B, T, ...]."""
    a_BTs = jnp.swapaxes(a_nBC, 0, 1)
    return a_BTs.reshape(a_BTs.shape[0], -1, *a_BTs.shape[3:])[:, :length]


def _product_dtype(dtype):
    return jnp.float32 if table.here().wide_products else dtype
