"""What the kinds of quantized weights share: arrays that never train, and a contraction that keeps no float copy.

A matrix of a linear layer has input dims, over which its layer sums, and output dims; before them it may have `layers`
and `experts`. Every layer and every expert is quantized for itself, as if it were alone. Codes lie over the mesh as the
weight did, and are gathered over fsdp as codes: a quarter (nf4) or half (int8) of bfloat16's bytes travel.
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
    """An array of a quantized weight. Being no Param, it is in nothing that is differentiated or updated."""


def quantized(array: jax.Array, names: tuple[str | None, ...]) -> Quantized:
    return Quantized(array, out_sharding=names, eager_sharding=False)


class QuantizedWeight(Weight):
    """In place of a Param or Frozen of a linear layer.

    Args:
      weight: the float weight, [layers, experts, outputs, inputs, outputs]: any number of each kind of dim (of inputs
        at least one, side by side), as its metadata `out_sharding` and `inputs` tell. Of several input dims only the
        first may be split over the mesh.

    Raises:
      ValueError: it has no input dims, or they are not side by side.
    """

    def __init__(self, weight: nnx.Variable):
        metadata = weight.get_metadata()
        names, inputs = tuple(metadata["out_sharding"]), tuple(metadata.get("inputs") or ())
        start = names.index(inputs[0]) if inputs else 0
        if not inputs or names[start : start + len(inputs)] != inputs:
            raise ValueError(f"its dims are {names}, its input dims {inputs}; these must be there, and side by side")
        self.names, self.inputs, self.role = names, inputs, role_of(weight)
        self._lead = sum(name in STACKED for name in names[:2])
        # Of one matrix: positions, logical names and sizes.
        self._start, self._names = start - self._lead, names[self._lead :]
        self._sizes = weight.shape[self._lead :]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the float weight; in a scan over layers, of one layer's."""
        return (*self._stacked(), *self._sizes)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def einsum(self, spec: str, x: jax.Array, out: tuple[str, ...]) -> jax.Array:
        like = jax.typeof(x).sharding.spec if axes.has_mesh() else None
        return _contract(spec, out, like, x, self)

    def gathered(self, dtype) -> jax.Array:
        whole = jax.tree.map(axes.gather, self)
        # As one operation, for whose gradient nothing is kept: else a scan takes out of it the constants that the codes
        # are compared with, of a weight's size each, and has all of them lie in memory.
        make = jax.checkpoint(lambda weight: weight.dequantized().astype(dtype), prevent_cse=False)
        for _ in self._stacked():
            make = jax.vmap(make)
        return make(whole)

    def dequantized(self) -> jax.Array:
        """One matrix in float32, of one that is whole along fsdp."""
        raise NotImplementedError

    def _stacked(self) -> tuple[int, ...]:
        """Sizes of the dims that stand before a matrix."""
        raise NotImplementedError


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _contract(spec, out, like, x, weight):
    return contract(spec, x, weight.gathered(x.dtype), out)


def _forward(spec, out, like, x, weight):
    return _contract(spec, out, like, x, weight), weight


def _backward(spec, out, like, weight, dy):
    # Or the compiler would find the weight made already, and keep that of every layer from the forward pass.
    weight, dy = jax.lax.optimization_barrier((weight, dy))
    return input_gradient(spec, dy, weight.gathered(dy.dtype), like), None


_contract.defvjp(_forward, _backward)


def each(quantize, weight: jax.Array, lead: int):
    """`quantize` for each matrix of a stack, one after the other on each device that has some of them, so that what it
    needs meanwhile is for one."""
    if lead and weight.dtype.itemsize == 2:  # a loop over bfloat16 would have XLA's CPU compiler copy it all in float32
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
    """The names without those whose parts of the mesh do not divide their dim."""
    divides = lambda name, size: name is not None and size % axes.parts(name) == 0
    return tuple(name if divides(name, size) else None for name, size in zip(names, shape, strict=True))
