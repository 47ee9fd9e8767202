"""Parameters, and THE einsum: every contraction with a weight goes through it.

One seam, so that whatever kind of leaf a weight is, no model equation changes for it. A weight is one of

    nnx.Param   an array that trains
    Frozen      an array that does not: it has no gradient and no optimizer state
    Weight      something made of several of these: low-rank (adapt/lora.py), quantized (compress/quantized.py)
"""

from collections.abc import Callable

import jax
from flax import nnx

from model import axes, roles
from model.platforms import products, table
from model.roles import Role

STACKED = ("layers", "experts")  # dims of which each index has a matrix of its own


class Frozen(nnx.Variable):
    """An array that never trains: being no Param, it is in nothing that is differentiated or updated."""


class Weight(nnx.Module):
    """A weight that is not one array."""

    def einsum(self, spec: str, x: jax.Array, out: tuple[str, ...]) -> jax.Array:
        """See the function `einsum`."""
        raise NotImplementedError

    def gathered(self, dtype) -> jax.Array:
        """The weight as one array, in this dtype, whole along fsdp."""
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
    """A parameter, split over the mesh that is set (none: not split).

    Args:
      names: logical names of its dims.
      role: what it is.
      inputs: of a matrix (roles.WITH_INPUTS) those of its dims that it sums over.

    Raises:
      ValueError: a role that is none, or that does not go with the inputs.
    """
    value, role = init(rngs.params(), shape, dtype), roles.checked(role, names, inputs)
    return nnx.Param(value, out_sharding=names, eager_sharding=axes.has_mesh(), inputs=inputs, role=role)


def trained(model) -> dict[str, nnx.Param]:
    """What trains of a model, by name."""
    return {name: leaf for name, leaf in variables(model).items() if isinstance(leaf, nnx.Param)}


def variables(model) -> dict[str, nnx.Variable]:
    """All that a model is made of, by name."""
    return {whole_name(path): leaf for path, leaf in jax.tree.leaves_with_path(model, is_leaf=is_variable)}


def replaced(model, variables: dict[str, nnx.Variable]):
    """The model with these variables in the places of those of the same names."""
    take = lambda path, variable: variables.get(whole_name(path), variable)
    return jax.tree.map_with_path(take, model, is_leaf=is_variable)


def frozen(model):
    """The model in which nothing trains."""
    return marked(model, lambda name, trains: False)


def marked(model, wanted: Callable[[str, bool], bool]):
    """The model in which an array trains where `wanted(name, whether it did)` says so."""

    def mark(path, v):
        if not isinstance(v, nnx.Param | Frozen):
            return v
        kind = nnx.Param if wanted(whole_name(path), isinstance(v, nnx.Param)) else Frozen
        return v if type(v) is kind else kind(v[...], **v.get_metadata())

    return jax.tree.map_with_path(mark, model, is_leaf=is_variable)


def is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)


def gathered(w: nnx.Variable | Weight, dtype) -> jax.Array:
    """A weight as its layer needs it: cast before it is gathered over fsdp: half the bytes travel in bfloat16."""
    return w.gathered(dtype) if isinstance(w, Weight) else axes.gather(w[...].astype(dtype))


def name(path) -> str:
    """Of a parameter's array: the path of the parameter in the model, such as 'stack/segments/0/0/attention/query'."""
    return whole_name(path).removesuffix("/value")


def whole_name(path) -> str:
    """Of a parameter, not of its array: the last part of attention's is 'value' as well."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree) -> dict[str, jax.Array]:
    """The leaves of a model (or any tree) by name."""
    return {name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def einsum(spec: str, x: jax.Array, w: nnx.Variable | Weight, out: tuple[str, ...]) -> jax.Array:
    """Contract activations with a weight, in the dtype of the activations.

    Args:
      spec: 'x dims,w dims->out dims', e.g. 'BTD,DF->BTF'.
      x: the activations.
      w: the weight, as stored (float32, split over fsdp).
      out: logical names of the result's dims.
    """
    return w.einsum(spec, x, out) if isinstance(w, Weight) else contract(spec, x, gathered(w, x.dtype), out)


def contract(spec: str, x: jax.Array, w: jax.Array, out: tuple[str, ...]) -> jax.Array:
    """`einsum` with a weight as its layer needs it."""
    x_dims, w_dims, y_dims = products.dims(spec)
    sizes = dict(zip(x_dims + w_dims, x.shape + w.shape, strict=True))
    placed = axes.out(*out, shape=tuple(sizes[dim] for dim in y_dims))
    return table.here().contraction(spec, placed, x, w)
