"""The output layer applied in chunks along the length. Every loss over a vocabulary is built from it.

The logits of a chunk are computed, used and dropped, so all logits [batch, length, vocabulary] never exist at once.
Tokens stay on their devices (shard_map over the mesh axes of rows and length). Each device sums its own gradient of the
output table, and one reduction at the end adds these. The vocabulary may be split over `tensor`.

Dims: B rows, T length, C chunk of the length, D features, V vocabulary, n chunks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model import axes
from model.output import Output
from model.platforms import table

# Tokens (rows x chunk) per chunk on one device. The memory for logits is this number times the vocabulary, in float32.
CHUNK_TOKENS = 1024


class Head(NamedTuple):
    """The arrays of an output layer, ready for matmuls. The softcap is not an array, so it is passed separately."""

    x_BTD: jax.Array  # in the compute dtype
    w_VD: jax.Array  # in the compute dtype, gathered over fsdp
    b_V: jax.Array | None  # float32


def head(output: Output) -> Head:
    """Returns the arrays of an output layer, with the table cast to the compute dtype and gathered over fsdp."""
    bias = None if output.bias is None else output.bias[...].astype(jnp.float32)
    return Head(output.x_BTE, axes.gather(output.table[...].astype(output.x_BTE.dtype)), bias)


def on_rows(run, heads: tuple[Head, ...], arrays_BT: tuple[jax.Array, ...], *, add: bool):
    """Returns `run(names, heads, arrays)`, computed on each device for its own tokens.

    Args:
      run: a function of local arrays; `names` are the mesh axes over which the tokens are split.
      heads: the output layers.
      arrays_BT: further arrays [B, T, ...], split like the tokens.
      add: True if the results are sums over tokens, which are then added over devices. False if they are [B, T, ...].
    """
    shape = heads[0].x_BTD.shape[:2]
    context = axes.size("context")
    if shape[1] % context:
        raise ValueError(f"rows of {shape[1]} tokens can't be split over context={context}; use a multiple of it")
    # Without a split there is no shard_map: XLA's partitioner fails if the axes of a shard_map all have size 1.
    names = axes.splitting("batch", "length", shape=shape)
    if not names:
        return run(names, heads, arrays_BT)

    def local(heads, arrays_BT):
        cast = lambda head: head._replace(**_varying({"w_VD": head.w_VD, "b_V": head.b_V}, names))
        found = run(names, tuple(map(cast, heads)), arrays_BT)
        return jax.lax.psum(found, names) if add else found

    rows, whole = axes.spec("batch", "length", shape=shape), PartitionSpec()
    specs = (
        tuple(jax.tree.map(lambda _: whole, head)._replace(x_BTD=rows) for head in heads),
        tuple(rows for _ in arrays_BT),
    )
    return jax.shard_map(local, axis_names=set(names), in_specs=specs, out_specs=whole if add else rows)(
        heads, arrays_BT
    )


def _varying(arrays, names):
    """Casts arrays to ones that differ between devices. The transpose of this cast adds their gradients, once."""
    cast = lambda a: jax.lax.pcast(a, names, to="varying")
    if table.here().narrow_sums:
        return jax.tree.map(cast, arrays)
    return jax.tree.map(lambda a: cast(a.astype(jnp.float32)).astype(a.dtype), arrays)


def logits(head: Head, softcap: float, x_BCD: jax.Array) -> jax.Array:
    """Returns the logits of one chunk, float32 [B, C, V], after the softcap (0: none)."""
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
    """Returns the gradient with respect to the logits before the softcap, from that after it."""
    return dlogits_BCV * (1 - jnp.square(logits_BCV / softcap)) if softcap else dlogits_BCV


def is_target(targets_BC, vocab: int) -> jax.Array:
    """Returns a one-hot mask of the targets, bool [B, C, V].

    It is a comparison and not a gather, because the vocabulary may be split over devices, and because a comparison
    fuses with the operations that use it.
    """
    return jax.lax.broadcasted_iota(jnp.int32, (1, 1, vocab), 2) == targets_BC[..., None]


class TableGradient(NamedTuple):
    """The gradient of the output table and bias, summed over chunks in float32 whatever the dtype of the table."""

    dw_DV: jax.Array
    db_V: jax.Array | None

    @staticmethod
    def zeros(head: Head) -> "TableGradient":
        return TableGradient(
            jnp.zeros_like(head.w_VD.T, jnp.float32), None if head.b_V is None else jnp.zeros_like(head.b_V)
        )


def back(head: Head, x_BCD, dlogits_BCV, sums: TableGradient) -> tuple[jax.Array, TableGradient]:
    """Returns the gradient of a chunk's features, and `sums` plus the chunk's gradient of the table.

    Args:
      dlogits_BCV: float32, the gradient with respect to the logits before the softcap.
    """
    dw_DV, db_V = sums
    db_V = None if db_V is None else db_V + dlogits_BCV.sum((0, 1))
    dlogits_BCV = dlogits_BCV.astype(x_BCD.dtype)
    dx_BCD = jnp.einsum("BCV,VD->BCD", dlogits_BCV, head.w_VD, out_sharding=axes.out("batch", "length", "features"))
    # x comes first because a CPU makes a transposed copy of the first operand, and x is the smaller one.
    dw_DV += jax.lax.dot_general(
        x_BCD,
        dlogits_BCV,
        (((0, 1), (0, 1)), ((), ())),
        preferred_element_type=_product_dtype(head.w_VD.dtype),
        out_sharding=axes.out("features", "vocab"),
    )
    return dx_BCD, TableGradient(dw_DV, db_V)


def whole_gradient(head: Head, dx_nBCD, sums: TableGradient) -> Head:
    """Returns the gradient of the head, from the features' gradient of all chunks and the table's summed gradient."""
    return Head(joined(dx_nBCD, head.x_BTD.shape[1]), sums.dw_DV.T.astype(head.w_VD.dtype), sums.db_V)


def chunks(tree_BT):
    """Splits each [B, T, ...] into chunks [n, B, C, ...] for a scan. The last chunk is padded with zeros."""
    b, t = jax.tree.leaves(tree_BT)[0].shape[:2]
    # At least two chunks, so that the logits of the whole batch never exist at once.
    n = min(t, max(2, -(-b * t // CHUNK_TOKENS)))
    size = -(-t // n)

    def cut(a):
        if n * size != t:
            a = jnp.pad(a, ((0, 0), (0, n * size - t)) + ((0, 0),) * (a.ndim - 2))
        return jnp.swapaxes(a.reshape(b, n, size, *a.shape[2:]), 0, 1)

    return jax.tree.map(cut, tree_BT)


def joined(a_nBC, length: int) -> jax.Array:
    """Inverts `chunks`: [n, B, C, ...] -> [B, T, ...]."""
    a_BTs = jnp.swapaxes(a_nBC, 0, 1)
    return a_BTs.reshape(a_BTs.shape[0], -1, *a_BTs.shape[3:])[:, :length]


def _product_dtype(dtype):
    return jnp.float32 if table.here().wide_products else dtype
