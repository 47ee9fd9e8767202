"""Parameters, and THE einsum: every contraction with a weight goes through it.

With this one entry point, no model equation changes when a weight is another kind of leaf. A weight is one of

    nnx.Param   an array that trains
    Frozen      an array that does not train: it has no gradient and no optimizer state
    Weight      several of these combined: low-rank (adapt/lora.py), quantized (compress/quantized.py)
"""

from collections.abc import Callable

import jax
from flax import nnx

from model import axes, roles
from model.platforms import products, table
from model.roles import Role

STACKED = ("layers", "experts")  # batch dims of stacked matrices: each index holds a separate matrix


class Frozen(nnx.Variable):
    """An array that never trains. It is not a Param, so nothing differentiates or updates it."""


class Weight(nnx.Module):
    """A weight that consists of several arrays."""

    def einsum(self, spec: str, x: jax.Array, out: tuple[str | None, ...]) -> jax.Array:
        """Contracts `x` with the weight; see the function `einsum`."""
        raise NotImplementedError

    def gathered(self, dtype) -> jax.Array:
        """Returns the weight as one array of this dtype, gathered over fsdp."""
        raise NotImplementedError


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    names: tuple[str, ...],
    init,
    dtype,
    *,
    role: Role,
    inputs: tuple[str, ...] = (),
) -> nnx.Param:
    """Returns a parameter, sharded over the current mesh (replicated without one).

    Args:
      names: logical names of its dims.
      init: initializer (key, shape, dtype) -> array.
      role: its kind, see roles.py.
      inputs: for a matrix (roles.WITH_INPUTS), the dims that its product sums over.

    Raises:
      ValueError: the role is invalid, or does not match `inputs`.
    """
    value, role = init(rngs.params(), shape, dtype), roles.checked(role, names, inputs)
    return nnx.Param(value, out_sharding=names, eager_sharding=axes.has_mesh(), inputs=inputs, role=role)


def trained(model) -> dict[str, nnx.Param]:
    """Returns the model's trainable parameters by name."""
    return {name: leaf for name, leaf in variables(model).items() if isinstance(leaf, nnx.Param)}


def variables(model) -> dict[str, nnx.Variable]:
    """Returns all of the model's variables by name."""
    return {whole_name(path): leaf for path, leaf in jax.tree.leaves_with_path(model, is_leaf=is_variable)}


def replaced(model, variables: dict[str, nnx.Variable]):
    """Returns the model with `variables` in place of its variables of the same names."""
    take = lambda path, variable: variables.get(whole_name(path), variable)
    return jax.tree.map_with_path(take, model, is_leaf=is_variable)


def frozen(model):
    """Returns the model with all parameters frozen."""
    return marked(model, lambda name, trains: False)


def marked(model, wanted: Callable[[str, bool], bool]):
    """Returns the model in which an array trains if `wanted(name, whether it trained before)` is true."""

    def mark(path, v):
        if not isinstance(v, nnx.Param | Frozen):
            return v
        kind = nnx.Param if wanted(whole_name(path), isinstance(v, nnx.Param)) else Frozen
        return v if type(v) is kind else kind(v[...], **v.get_metadata())

    return jax.tree.map_with_path(mark, model, is_leaf=is_variable)


def is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)


def gathered(w: nnx.Variable | Weight, dtype) -> jax.Array:
    """Returns a weight as its layer needs it. Casts before gathering over fsdp, so bfloat16 halves the traffic."""
    return w.gathered(dtype) if isinstance(w, Weight) else axes.gather(w[...].astype(dtype))


def name(path) -> str:
    """Returns the name of a parameter's array: its path in the model, like 'stack/segments/0/0/attention/query'."""
    return whole_name(path).removesuffix("/value")


def whole_name(path) -> str:
    """Returns the name of a parameter, not of its array. Attention's value weight also ends in 'value', so keep it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree) -> dict[str, jax.Array]:
    """Returns the leaves of a model (or any tree) by name."""
    return {name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def einsum(spec: str, x: jax.Array, w: nnx.Variable | Weight, out: tuple[str | None, ...]) -> jax.Array:
    """Contracts activations with a weight, in the activations' dtype.

    Args:
      spec: 'x dims,w dims->out dims', e.g. 'BTD,DF->BTF'.
      x: the activations.
      w: the weight as stored (e.g. float32, split over fsdp).
      out: logical names of the result's dims.
    """
    return w.einsum(spec, x, out) if isinstance(w, Weight) else contract(spec, x, gathered(w, x.dtype), out)


def contract(spec: str, x: jax.Array, w: jax.Array, out: tuple[str | None, ...]) -> jax.Array:
    """Contracts activations with a weight that is already gathered; arguments as in `einsum`."""
    x_dims, w_dims, y_dims = products.dims(spec)
    sizes = dict(zip(x_dims + w_dims, x.shape + w.shape, strict=True))
    placed = axes.out(*out, shape=tuple(sizes[dim] for dim in y_dims))
    return table.here().contraction(spec, placed, x, w)
