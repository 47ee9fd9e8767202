"""Several low-rank adapters over one base, chosen for each row of a batch (as arXiv:2311.03285 serves them).

    y_b = x_b W + scale_n (x_b A_n) B_n,    n = rows[b];  -1: the base alone

Adapters of any ranks and targets, filled up with zeros to the largest of each weight. A layer reads the factors of the
batch's rows alone, however many adapters there are: rows times the size of an adapter, which is small beside W where
rows times rank is small beside W's width.

Left out: training, and adapters of experts, whose rows are those of many texts.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import axes
from model.adapt.lora import adapters, low_rank, low_rank_dims
from model.roles import Role
from model.weights import Frozen, Weight, einsum, gathered, is_variable, whole_name


class Exact(nnx.Variable):
    """Numbers that keep their dtype in decoding."""


class Bank(Weight):
    """
    Args:
      base: the weight under all adapters.
      a: [N, inputs, rank].  b: [N, rank, outputs].  scales: float32 [N].
      inputs: places of the weight's input dims, counted without the dim of layers.
      rows: int32 [B], the adapter of each row; None: not yet chosen.
    """

    def __init__(self, base, a: Frozen, b: Frozen, scales: Exact, inputs: tuple[int, ...], rows: Exact | None = None):
        self.base, self.a, self.b, self.scales, self.inputs = base, a, b, scales, inputs
        self.rows = nnx.data(rows)

    def einsum(self, spec, x, out):
        if self.rows is None:
            raise ValueError("the model has several adapters; choose one for each row (model.adapt.bank.chosen)")
        y, (x_dims, w_dims, y_dims) = einsum(spec, x, self.base, out), spec.replace("->", ",").split(",")
        rows_B, row = self.rows[...], x_dims[0]
        factors = zip(low_rank_dims(w_dims, self.inputs, experts=False), (self.a, self.b), strict=True)
        (a_dims, a), (b_dims, b) = ((row + dims, _of_rows(gathered(w, x.dtype), rows_B)) for dims, w in factors)
        delta = low_rank(spec, x, (a_dims, a), (b_dims, b), out)
        scale_B = jnp.where(rows_B < 0, 0, _of_rows(self.scales[...], rows_B)).astype(x.dtype)
        return y + jnp.expand_dims(scale_B, [i for i, dim in enumerate(y_dims) if dim != row]) * delta

    def gathered(self, dtype):
        raise ValueError("several adapters chosen by row are not one weight")


def bank(model, adapted: Sequence):
    """The model with the adapters of others, which stand on the same weights: rows are to be chosen.

    Args:
      model: the base.
      adapted: models with low-rank adapters, on the mesh that is set; number n of `chosen` is the n-th of them.

    Raises:
      ValueError: a model without such an adapter, or with one of experts or of weights that the base does not have.
    """
    found = [adapters(one) for one in adapted]
    if not all(found):
        raise ValueError(f"adapter {found.index({})} is none: the model has no low-rank weights")
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


def chosen(model, rows: Sequence[int]):
    """The model for a batch of so many rows: the number of each row's adapter, -1 for the base alone.

    Raises:
      ValueError: a number that no adapter has.
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
    """(A, B, scales) of each weight, from those of each adapter that it has."""
    return {target: _one(found, target) for target in itertools.chain.from_iterable(found)}


def _one(found: list[dict], target: str) -> tuple[Frozen, Frozen, Exact]:
    """Of one weight; an adapter that leaves it alone has zeros there. Three adapters of ranks 2, none and 1, R = 2:

        A  [N, inputs, R]   | a a |  | 0 0 |  | a 0 |        B  [N, R, outputs]   | b b b |  | 0 0 0 |  | b b b |
                            | a a |  | 0 0 |  | a 0 |                             | b b b |  | 0 0 0 |  | 0 0 0 |

    Of layers that are stacked, N stands behind their dim, so that a scan over layers finds [N, ...] in each.
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
    """Factors with the dims of `like` (None: zeros) in a new dim `at`, each filled up to `rank` at its dim `ranks`."""
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
    """w[rows], split as the rows are."""
    sharding = None
    if axes.has_mesh():
        sharding = axes.PartitionSpec(*jax.typeof(rows_B).sharding.spec, *jax.typeof(w).sharding.spec[1:])
    return w.at[jnp.maximum(rows_B, 0)].get(out_sharding=sharding, mode="promise_in_bounds")
