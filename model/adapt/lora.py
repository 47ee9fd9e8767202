"""Low-rank adaptation (arXiv:2106.09685): a frozen weight plus the product of two narrow trainable ones.

    y = x W + scale (x A) B,    scale = alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)

A is initialized from U(-1/sqrt(inputs), 1/sqrt(inputs)) and B to 0, so a new adapter changes nothing. This is peft's
initialization, and rsLoRA's scale is peft's as well. A and B keep W's batch dims (layers and experts). If W has several
input dims (heads, in attention's output), so does A.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.compress.quantize import is_linear
from model.compress.quantized import QuantizedWeight
from model.layers import dropout
from model.patterns import by_array, layers
from model.platforms import products
from model.roles import Role
from model.weights import STACKED, Weight, contract, einsum, gathered, is_variable, param, whole_name

_RANK = "r"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Settings of low-rank adapters.

    Args:
      alpha: see the scale above.
      dropout: rate of dropout on the adapter's input, in training.
      targets: ordered (pattern, bool): which linear layers' weights get an adapter. Trainable weights get none.

    Raises:
      ValueError: a field has an impossible value.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rank_stabilized: bool = False
    targets: tuple[tuple[str, bool], ...] = (("attention|cross|feed_forward", True), (".*", False))

    def __post_init__(self):
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}; it must be a whole number of at least 1")
        if not _is_number(self.alpha) or not 0 < self.alpha < math.inf:  # with 0, nothing would learn, without an error
            raise ValueError(f"alpha is {self.alpha!r}; it must be a finite number above 0")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}; it must lie in [0, 1)")
        if not isinstance(self.rank_stabilized, bool):
            raise ValueError(f"rank_stabilized is {self.rank_stabilized!r}; it must be True or False")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def insert(self, model, key: jax.Array):
        """Returns the model with a new adapter at each target that does not train itself.

        Raises:
          ValueError: there is no target, or a target can't have an adapter.
        """
        number = itertools.count()

        def adapted(path, w):
            own = whole_name(path)
            return _adapter(w, self, jax.random.fold_in(key, next(number)), own) if own in chosen else w

        linear = lambda w: isinstance(w, QuantizedWeight) or is_linear(w)
        matrices = {path: w for path, w in weights(model).items() if linear(w)}
        wanted = by_array(model.config, matrices, self.targets, "adapt.targets")
        targets = [path for path in matrices if wanted[path]]
        if not targets:
            raise ValueError(
                "adapt.targets: no pattern finds the weight of a linear layer; the weights are: "
                + ", ".join(_kinds(model, matrices))
            )
        chosen = {path for path in targets if not isinstance(matrices[path], nnx.Param)}
        if not chosen:
            raise ValueError(
                f"adapt.targets: every weight that it selects already trains by train_only, like {targets[0]}"
            )
        return jax.tree.map_with_path(adapted, model, is_leaf=_is_weight)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class LowRank(Weight):
    """A weight with a low-rank adapter.

    Args:
      base: the frozen weight: Frozen or a Weight.
      a: [..., inputs, rank].  b: [..., rank, outputs].
      rate: dropout rate of the adapter's input.
      inputs: indices of the weight's input dims, not counting the dim of layers.
      experts: whether the first dim is the experts'.
      key: random keys for dropout, one per layer; None: no dropout.
    """

    def __init__(
        self, base, a: nnx.Variable, b: nnx.Variable, scale: float, rate: float, inputs, experts: bool, key=None
    ):
        self.base, self.a, self.b = base, a, b
        self.scale, self.rate, self.inputs, self.experts = scale, rate, inputs, experts
        self.key = nnx.data(key)

    def einsum(self, spec, x, out):
        y, (_, w_dims, _) = einsum(spec, x, self.base, out), products.dims(spec)
        if self.key is not None:
            x = dropout(x, self.rate, self.key)
        a_dims, b_dims = low_rank_dims(w_dims, self.inputs, self.experts)
        a, b = (gathered(w, x.dtype) for w in (self.a, self.b))
        return y + low_rank(spec, x, (a_dims, a), (b_dims, b), out, self.scale)

    def gathered(self, dtype):
        return gathered(self.base, dtype) + self.delta(axes.gather(self.a[...]), axes.gather(self.b[...])).astype(dtype)

    def delta(self, a, b) -> jax.Array:
        """Returns what the adapter adds to one layer's weight, in float32."""
        w_dims = "cdefgh"[: a.ndim + b.ndim - 2 - self.experts]
        a_dims, b_dims = low_rank_dims(w_dims, self.inputs, self.experts)
        sharding = None
        if axes.has_mesh():
            split = dict(zip(b_dims, jax.typeof(b).sharding.spec, strict=True))
            split |= dict(zip(a_dims, jax.typeof(a).sharding.spec, strict=True))
            sharding = axes.PartitionSpec(*(split[dim] for dim in w_dims))
        product = jnp.einsum(
            f"{a_dims},{b_dims}->{w_dims}",
            a.astype(jnp.float32),
            b.astype(jnp.float32),
            precision="highest",
            out_sharding=sharding,
        )
        return self.scale * product


def low_rank_dims(w_dims: str, inputs: tuple[int, ...], experts: bool) -> tuple[str, str]:
    """Returns the dims of A and of B, for a weight with these dims."""
    stacked, into = w_dims[:experts], "".join(w_dims[place] for place in inputs)
    outputs = "".join(dim for dim in w_dims if dim not in stacked + into)
    return stacked + into + _RANK, stacked + _RANK + outputs


def low_rank(
    spec: str, x: jax.Array, a: tuple[str, jax.Array], b: tuple[str, jax.Array], out, scale: float = 1.0
) -> jax.Array:
    """Returns scale (x A) B, given the `spec` of x W. It scales the narrow product, whose gradient is narrow too.

    Args:
      a, b: (dims, factor, gathered).
    """
    x_dims, w_dims, y_dims = products.dims(spec)
    # Multiply x first with the factor that has the summed dims: A, or B in absorbed latent attention.
    summed = set(x_dims) & set(w_dims) - set(y_dims)
    (first_dims, first), (second_dims, second) = (a, b) if summed <= set(a[0]) else (b, a)
    names = dict(zip(y_dims, out, strict=True))
    middle = [dim for dim in x_dims if dim not in summed]
    x = scale * contract(f"{x_dims},{first_dims}->{''.join(middle)}{_RANK}", x, first, (*map(names.get, middle), None))
    return contract(f"{''.join(middle)}{_RANK},{second_dims}->{y_dims}", x, second, out)


def weights(model) -> dict[str, nnx.Variable | QuantizedWeight]:
    """Returns the weights of a model without adapters by name; a quantized weight counts as one."""
    return {whole_name(path): w for path, w in jax.tree.leaves_with_path(model, is_leaf=_is_weight)}


def _kinds(model, names: Iterable[str]) -> list[str]:
    """Returns the distinct names of weights, without layer numbers."""
    where = {name: layers(model.config, name) for name in names}
    return sorted({found[2] if found else name for name, found in where.items()})


def _is_weight(leaf) -> bool:
    return is_variable(leaf) or isinstance(leaf, QuantizedWeight)


def _dims(w: nnx.Variable | QuantizedWeight) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (logical names of a linear weight's dims, names of those that its layer sums over)."""
    if isinstance(w, QuantizedWeight):
        return w.names, w.inputs
    return w.get_metadata("out_sharding"), w.get_metadata("inputs")


def _adapter(w: nnx.Variable | QuantizedWeight, settings: Lora, key, path: str) -> LowRank:
    names, inputs = _dims(w)
    sizes, stacked = dict(zip(names, w.shape, strict=True)), tuple(dim for dim in names if dim in STACKED)
    outputs = tuple(dim for dim in names if dim not in stacked + inputs)
    if settings.dropout and "experts" in stacked:
        raise ValueError(
            f"targets: {path} holds the weights of experts, which do not support dropout; exclude them or set "
            "dropout to 0"
        )
    bound = math.prod(sizes[dim] for dim in inputs) ** -0.5
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    shape = lambda dims: tuple(sizes.get(dim, settings.rank) for dim in dims)
    a_dims, b_dims = (*stacked, *inputs, "rank"), (*stacked, "rank", *outputs)
    factor = lambda dims, init: param(nnx.Rngs(key), shape(dims), dims, init, jnp.float32, role=Role.LOW_RANK)
    a, b = factor(a_dims, uniform), factor(b_dims, nnx.initializers.zeros)
    own = [dim for dim in names if dim != "layers"]
    places = tuple(own.index(dim) for dim in inputs)
    return LowRank(w, a, b, settings.scale, settings.dropout, places, "experts" in stacked)


def seeded(model, key: jax.Array):
    """Returns the model with random keys for its adapters' dropout, for one training step."""
    counter, key = itertools.count(), jax.random.fold_in(key, 1)  # the model uses the key itself

    def with_key(w):
        if not (isinstance(w, LowRank) and w.rate):
            return w
        own = jax.random.fold_in(key, next(counter))
        keys = jax.random.split(own, w.a.shape[0]) if "layers" in w.a.get_metadata("out_sharding") else own
        return LowRank(w.base, w.a, w.b, w.scale, w.rate, w.inputs, w.experts, keys)

    return jax.tree.map(with_key, model, is_leaf=lambda leaf: isinstance(leaf, LowRank))


def adapters(model) -> dict[str, LowRank]:
    """Returns the model's weights with low-rank adapters by name."""
    leaves = jax.tree.leaves_with_path(model, is_leaf=lambda leaf: isinstance(leaf, LowRank))
    return {whole_name(path): w for path, w in leaves if isinstance(w, LowRank)}


def merged(model):
    """Merges adapters into their weights; returns the model without adapters and consumes the given one.

    Merges one weight at a time in place of its base. Inside jax.jit nothing is consumed.

    Raises:
      ValueError: a weight under an adapter is quantized: merge into the original weights.
    """

    def merge(path, w):
        if not isinstance(w, LowRank):
            return w
        if not is_variable(w.base):
            raise ValueError(f"{whole_name(path)} is quantized; merge into the original weights")
        factors = LowRank(None, w.a, w.b, w.scale, w.rate, w.inputs, w.experts)
        return w.base.replace(_merged(w.base[...], factors))

    return jax.tree.map_with_path(merge, model, is_leaf=lambda leaf: isinstance(leaf, LowRank))


@functools.partial(jax.jit, donate_argnums=0)
def _merged(base, factors: LowRank):
    """Merges layer by layer, so that only one layer at a time is in float32."""
    add = lambda base, a, b: (base.astype(jnp.float32) + factors.delta(a, b)).astype(base.dtype)
    a, b = factors.a[...], factors.b[...]
    if "layers" not in factors.a.get_metadata("out_sharding"):
        return add(base, a, b)
    at = lambda array, layer: jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
    put = lambda layer, base: jax.lax.dynamic_update_index_in_dim(
        base, add(*(at(array, layer) for array in (base, a, b))), layer, 0
    )
    return jax.lax.fori_loop(0, base.shape[0], put, base)
