"""What the kinds of quantized weights share: arrays that never train, and a contraction that saves no float copy.

The matrix of a linear layer has input dims, which its layer sums over, and output dims. The dims `layers` and `experts`
may precede them. Each layer's and expert's matrix is quantized separately. Codes are sharded like the weight, and are
gathered over fsdp as codes, which is a quarter (nf4) or half (int8) of bfloat16's traffic.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.platforms.products import input_gradient
from model.roles import role_of
from model.weights import STACKED, Weight, contract


class Quantized(nnx.Variable):
    """An array of a quantized weight. It is not a Param, so nothing differentiates or updates it."""


def quantized(array: jax.Array, names: tuple[str | None, ...]) -> Quantized:
    """Makes a variable of an array that is already sharded by these names."""
    return Quantized(array, out_sharding=names, eager_sharding=False)


class QuantizedWeight(Weight):
    """A quantized weight in place of a linear layer's Param or Frozen.

    Args:
      weight: the float weight, [layers, experts, outputs, inputs, outputs], with any number of each kind of dim (at
        least one input dim, and all adjacent), described by its metadata `out_sharding` and `inputs`. Only the first
        input dim may be split over the mesh.

    Raises:
      ValueError: there are no input dims, or they are not adjacent.
    """

    def __init__(self, weight: nnx.Variable):
        metadata = weight.get_metadata()
        names, inputs = tuple(metadata["out_sharding"]), tuple(metadata.get("inputs") or ())
        start = names.index(inputs[0]) if inputs else 0
        if not inputs or names[start : start + len(inputs)] != inputs:
            raise ValueError(f"its dims are {names} and its input dims {inputs}; it needs adjacent input dims")
        self.names, self.inputs, self.role = names, inputs, role_of(weight)
        self._lead = sum(name in STACKED for name in names[:2])
        # Index of the first input dim, names and sizes, all of one matrix.
        self._start, self._names = start - self._lead, names[self._lead :]
        self._sizes = weight.shape[self._lead :]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the float weight; in a scan over layers, of one layer's."""
        return (*self._stacked(), *self._sizes)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def einsum(self, spec: str, x: jax.Array, out: tuple[str | None, ...]) -> jax.Array:
        like = jax.typeof(x).sharding.spec if axes.has_mesh() else None
        return _contract(spec, out, like, x, self)

    def gathered(self, dtype) -> jax.Array:
        whole = jax.tree.map(axes.gather, self)
        # jax.checkpoint saves nothing of this operation for the backward pass. Otherwise a scan would hoist the
        # constants that codes are compared with, each of a weight's size, and keep all of them in memory.
        make = jax.checkpoint(lambda weight: weight.dequantized().astype(dtype), prevent_cse=False)
        for _ in self._stacked():
            make = jax.vmap(make)
        return make(whole)

    def dequantized(self) -> jax.Array:
        """Returns one matrix in float32, given one that is already gathered over fsdp."""
        raise NotImplementedError

    def _stacked(self) -> tuple[int, ...]:
        """Returns the sizes of the dims before a matrix (layers, experts)."""
        raise NotImplementedError


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _contract(spec, out, like, x, weight):
    return contract(spec, x, weight.gathered(x.dtype), out)


def _forward(spec, out, like, x, weight):
    return _contract(spec, out, like, x, weight), weight


def _backward(spec, out, like, weight, dy):
    # The barrier keeps the compiler from reusing the forward pass's dequantized weights, one per layer.
    weight, dy = jax.lax.optimization_barrier((weight, dy))
    return input_gradient(spec, dy, weight.gathered(dy.dtype), like), None


_contract.defvjp(_forward, _backward)


def each(quantize, weight: jax.Array, lead: int):
    """Runs `quantize` on each matrix of a stack, one at a time on each device, so that it needs memory for one."""
    if lead and weight.dtype.itemsize == 2:  # XLA's CPU compiler would copy all of it to float32 in a loop
        dtype, matrix = weight.dtype, quantize
        quantize = lambda bits: matrix(jax.lax.bitcast_convert_type(bits, dtype))
        weight = jax.lax.bitcast_convert_type(weight, jnp.uint16)
    for _ in range(lead):
        quantize = functools.partial(jax.lax.map, quantize)
    stacked = jax.typeof(weight).sharding.spec[:lead] if axes.has_mesh() else ()
    if names := axes.axes_of(stacked):
        split = axes.PartitionSpec(*stacked)
        quantize = jax.shard_map(quantize, axis_names=set(names), in_specs=split, out_specs=split, check_vma=False)
    return quantize(weight)


def fitting(names: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Returns the names, with None where the mesh does not divide a dim into equal parts."""
    divides = lambda name, size: name is not None and size % axes.parts(name) == 0
    return tuple(name if divides(name, size) else None for name, size in zip(names, shape, strict=True))
