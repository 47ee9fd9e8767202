"""Several low-rank adapters over one base model; each row of a batch chooses one (served as in arXiv:2311.03285).

    y_b = x_b W + scale_n (x_b A_n) B_n,    n = rows[b];  -1: only the base

Adapters may differ in ranks and targets; zeros pad each weight's factors to the largest rank. A layer reads only the
factors of the batch's rows, however many adapters there are. That costs rows times the size of an adapter, which is
small compared to W if rows times rank is small compared to W's width.

Left out: training, and adapters of experts, whose rows come from many texts.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import axes
from model.adapt.lora import adapters, low_rank, low_rank_dims
from model.platforms import products
from model.roles import Role
from model.weights import Frozen, Weight, einsum, gathered, is_variable, whole_name


class Exact(nnx.Variable):
    """Numbers that keep their dtype in decoding, which casts other variables."""


class Bank(Weight):
    """A weight with several low-rank adapters.

    Args:
      base: the weight under all adapters.
      a: [N, inputs, rank].  b: [N, rank, outputs].  scales: float32 [N].
      inputs: indices of the weight's input dims, not counting the dim of layers.
      rows: int32 [B], the adapter of each row; None: not chosen yet.
    """

    def __init__(self, base, a: Frozen, b: Frozen, scales: Exact, inputs: tuple[int, ...], rows: Exact | None = None):
        self.base, self.a, self.b, self.scales, self.inputs = base, a, b, scales, inputs
        self.rows = nnx.data(rows)

    def einsum(self, spec, x, out):
        if self.rows is None:
            raise ValueError("the model has several adapters; choose one for each row (model.adapt.bank.chosen)")
        y, (x_dims, w_dims, y_dims) = einsum(spec, x, self.base, out), products.dims(spec)
        rows_B, row = self.rows[...], x_dims[0]
        factors = zip(low_rank_dims(w_dims, self.inputs, experts=False), (self.a, self.b), strict=True)
        (a_dims, a), (b_dims, b) = ((row + dims, _of_rows(gathered(w, x.dtype), rows_B)) for dims, w in factors)
        delta = low_rank(spec, x, (a_dims, a), (b_dims, b), out)
        scale_B = jnp.where(rows_B < 0, 0, _of_rows(self.scales[...], rows_B)).astype(x.dtype)
        return y + jnp.expand_dims(scale_B, [i for i, dim in enumerate(y_dims) if dim != row]) * delta

    def gathered(self, dtype):
        raise ValueError("adapters chosen by row can't be gathered into one weight")


def bank(model, adapted: Sequence):
    """Returns the model with the adapters of other models over the same weights; `chosen` then selects by row.

    Args:
      model: the base.
      adapted: models with low-rank adapters, on the current mesh; `chosen` refers to them by index.

    Raises:
      ValueError: a model has no low-rank adapter, or has one of experts or of weights that the base lacks.
    """
    found = [adapters(one) for one in adapted]
    if not all(found):
        raise ValueError(f"adapter {found.index({})} does not exist: the model has no low-rank weights")
    first = {target: w for one in reversed(found) for target, w in one.items()}
    if experts := [target for target, w in first.items() if w.experts]:
        raise ValueError(f"{experts[0]} holds the weights of experts; their adapters can't be chosen by row")
    factors = [{target: (w.a, w.b, jnp.float32(w.scale)) for target, w in one.items()} for one in found]
    joined = _joined(factors)

    def take(path, w):
        own = joined.pop(whole_name(path), None)
        return w if own is None else Bank(w, *own, first[whole_name(path)].inputs)

    model = jax.tree.map_with_path(take, model, is_leaf=lambda leaf: is_variable(leaf) or isinstance(leaf, Weight))
    if joined:
        raise ValueError(f"an adapter is for {next(iter(joined))}, which the base does not have")
    return model


def holds_several(model) -> bool:
    """Returns whether a model has several adapters, of which each row must choose one."""
    leaves = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, Bank))
    return any(isinstance(leaf, Bank) for leaf in leaves)


def chosen(model, rows: Sequence[int]):
    """Returns the model for a batch with these rows.

    Args:
      rows: the adapter of each row; -1: only the base.

    Raises:
      ValueError: an adapter does not exist.
    """
    rows_B = np.asarray(rows, np.int32)

    def choose(w):
        if not isinstance(w, Bank):
            return w
        stacked = w.scales.shape[:-1]
        if rows_B.min() < -1 or rows_B.max() >= w.scales.shape[-1]:
            raise ValueError(f"rows are {rows_B.tolist()}, but adapters are 0 to {w.scales.shape[-1] - 1} (-1: none)")
        names = (*w.scales.get_metadata("out_sharding")[:-1], "batch")
        placed = axes.place(jnp.broadcast_to(rows_B, (*stacked, len(rows_B))), *names)
        return Bank(w.base, w.a, w.b, w.scales, w.inputs, Exact(placed, out_sharding=names, eager_sharding=False))

    return jax.tree.map(choose, model, is_leaf=lambda leaf: isinstance(leaf, Bank))


@jax.jit
def _joined(found: list[dict]) -> dict[str, tuple[Frozen, Frozen, Exact]]:
    """Returns (A, B, scales) of each weight, given the (A, B, scale) of each adapter's weights."""
    return {target: _one(found, target) for target in itertools.chain.from_iterable(found)}


def _one(found: list[dict], target: str) -> tuple[Frozen, Frozen, Exact]:
    """Stacks the factors of one weight. An adapter without it gets zeros. Three adapters of ranks 2, none and 1, R = 2:

        A  [N, inputs, R]   | a a |  | 0 0 |  | a 0 |        B  [N, R, outputs]   | b b b |  | 0 0 0 |  | b b b |
                            | a a |  | 0 0 |  | a 0 |                             | b b b |  | 0 0 0 |  | 0 0 0 |

    For stacked layers, N comes after their dim, so that a scan over layers sees [N, ...].
    """
    own = [one.get(target) for one in found]
    like_a, like_b, _ = next(factors for factors in own if factors is not None)
    layers = like_a.shape[:1] if "layers" in like_a.get_metadata("out_sharding") else ()
    rank = max(factors[0].shape[-1] for factors in own if factors is not None)
    each = lambda place, missing: [missing if factors is None else factors[place] for factors in own]

    a = _stacked(each(0, None), like_a, like_a.ndim - 1, rank, len(layers))
    b = _stacked(each(1, None), like_b, len(layers), rank, len(layers))
    scales = jnp.broadcast_to(jnp.stack(each(2, jnp.float32(0))), (*layers, len(own)))
    names = (*["layers"] * len(layers), None)
    return a, b, Exact(axes.place(scales, *names), out_sharding=names, eager_sharding=False)


def _stacked(factors: list, like: Frozen, ranks: int, rank: int, at: int) -> Frozen:
    """Stacks factors with the dims of `like` (None: zeros) along a new dim `at`, with dim `ranks` padded to `rank`."""
    shape = (*like.shape[:ranks], rank, *like.shape[ranks + 1 :])
    names = like.get_metadata("out_sharding")

    def filled(factor):
        if factor is None:
            return axes.place(jnp.zeros(shape), *names)
        more = [(0, wanted - size) for wanted, size in zip(shape, factor.shape, strict=True)]
        return axes.place(jnp.pad(factor[...], more), *names)

    array, names = jnp.stack([filled(factor) for factor in factors], axis=at), (*names[:at], None, *names[at:])
    return Frozen(axes.place(array, *names), out_sharding=names, eager_sharding=False, role=Role.LOW_RANK)


def _of_rows(w: jax.Array, rows_B: jax.Array) -> jax.Array:
    """Returns w[rows], sharded like the rows."""
    sharding = None
    if axes.has_mesh():
        sharding = axes.PartitionSpec(*jax.typeof(rows_B).sharding.spec, *jax.typeof(w).sharding.spec[1:])
    return w.at[jnp.maximum(rows_B, 0)].get(out_sharding=sharding, mode="promise_in_bounds")
