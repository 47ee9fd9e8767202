"""Quantizes the weights of a model's linear layers (FORMS lists the forms), and counts their bytes.

They are the frozen base of adapters, or a model that is kept so: its checkpoint holds the arrays of its quantized
weights ('.../query/codes', '.../query/absmax'), and the block `compress` of its config.json is Settings.fields().
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.compress.int8 import Int8
from model.compress.nf4 import NF4
from model.compress.quantized import QuantizedWeight
from model.roles import LINEAR, role_of
from model.weights import Frozen, is_variable, whole_name


class Form(NamedTuple):
    """A way to keep a weight."""

    make: Callable[[nnx.Variable, "Settings"], QuantizedWeight]  # traceable: works on abstract arrays
    fields: Mapping[str, str]  # field of a config block -> attribute of Settings


FORMS = {
    "nf4": Form(lambda weight, settings: NF4(weight, double=settings.double), {"double_quantization": "double"}),
    "int8": Form(lambda weight, settings: Int8(weight), {}),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to quantize a model.

    Args:
      kind: a name of FORMS.
      double: nf4: quantize the scales too.
      weights: ordered (regular expression, whether it is quantized): the first one found in the name of a weight of a
        linear layer decides. By default all of the stacks of layers; not heads, nor projections between widths.
    """

    kind: str = "nf4"
    double: bool = True
    weights: tuple[tuple[str, bool], ...] = (("/segments/", True), (".*", False))

    def __post_init__(self):
        if self.kind not in FORMS:
            raise ValueError(f"a weight can't be quantized to {self.kind!r}; choose from {', '.join(FORMS)}")
        if not isinstance(self.double, bool):
            raise ValueError(f"double quantization is {self.double!r}; it must be True or False")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Settings":
        """Returns the Settings of a config block; absent fields have their defaults.

        Raises:
          ValueError: an unknown method, a field that it does not have, or a value that is not possible.
        """
        given = dict(fields)
        found = cls(given.pop("method", ""))
        known = FORMS[found.kind].fields
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{unknown[0]} is not a field of {found.kind}; it has {', '.join(known) or 'none'}")
        return dataclasses.replace(found, **{known[name]: value for name, value in given.items()})

    def fields(self) -> dict[str, Any]:
        """Returns the config block: `method`, and the fields of that form. It does not hold `weights`."""
        own = FORMS[self.kind].fields
        return {"method": self.kind} | {name: getattr(self, attribute) for name, attribute in own.items()}

    def narrowed(self, name: str, variable: nnx.Variable) -> "nnx.Variable | QuantizedWeight":
        """Returns the variable quantized if it is chosen, and then consumes it; else the variable itself.

        Raises:
          ValueError: the kind does not support its number of inputs, or no pattern matches it.
        """
        if not is_linear(variable) or not _wanted(name, self.weights):
            return variable
        try:
            return quantized_weight(variable, self)
        except ValueError as error:
            raise ValueError(f"{name} can't be quantized: {error}") from error


def quantize(model, settings: Settings = Settings()):
    """Returns the model with its linear layers' weights quantized on their devices; consumes the given one.

    It quantizes one weight at a time and then deletes it. The peak memory is the model as it was, one quantized weight,
    and one of its layers in float32 (on a CPU, also a copy of a bfloat16 weight). Inside jax.jit or jax.eval_shape
    nothing is deleted.

    Raises:
      ValueError: no pattern matches a linear weight, none is chosen, or the kind does not support a weight's number of
        inputs; the message names it.
    """
    model = jax.tree.map_with_path(lambda path, v: settings.narrowed(whole_name(path), v), model, is_leaf=is_variable)
    if not _quantized_weights(model):
        raise ValueError(f"no weight of a linear layer is chosen to be quantized by {settings.weights}")
    return model


def dequantized(model, dtype=jnp.float32):
    """Returns the model with every quantized weight dequantized to `dtype`, as a frozen array."""

    @jax.jit
    def written_out(weight: QuantizedWeight) -> Frozen:
        array = axes.place(weight.gathered(dtype), *weight.names)
        return Frozen(array, eager_sharding=False, out_sharding=weight.names, inputs=weight.inputs, role=weight.role)

    is_quantized = lambda leaf: isinstance(leaf, QuantizedWeight)
    return jax.tree.map(lambda leaf: written_out(leaf) if is_quantized(leaf) else leaf, model, is_leaf=is_quantized)


def quantized_weight(variable: nnx.Variable, settings: Settings) -> QuantizedWeight:
    """Returns the quantized weight. Deletes the variable's array, except while tracing."""
    made = _made(variable, settings)
    if not isinstance(variable[...], jax.core.Tracer):
        variable[...].delete()
    return made


@functools.partial(jax.jit, static_argnums=1)
def _made(variable, settings):
    return FORMS[settings.kind].make(variable, settings)


def is_linear(variable) -> bool:
    """Returns whether this is the float weight of a linear layer."""
    return isinstance(variable, nnx.Param | Frozen) and role_of(variable) in LINEAR


def _wanted(weight: str, patterns) -> bool:
    for pattern, wanted in patterns:
        if re.search(pattern, weight):
            return wanted
    raise ValueError(f'no pattern matches {weight}, so it is not known whether to quantize it; add (".*", False)')


class Footprint(NamedTuple):
    """The number of weights, their bytes on all devices together (replicas count), and their bytes on one device."""

    weights: int
    bytes: int
    device_bytes: int


def footprint(model) -> Footprint:
    """Returns the footprint of a model's quantized weights, from shapes; the model may be abstract."""
    found = _quantized_weights(model)
    arrays = jax.tree.leaves(found)

    def device_bytes(array):
        shape = array.shape if array.sharding is None else array.sharding.shard_shape(array.shape)
        return math.prod(shape) * array.dtype.itemsize

    devices = lambda array: 1 if array.sharding is None else array.sharding.num_devices
    each = [(device_bytes(array), devices(array)) for array in arrays]
    return Footprint(sum(w.size for w in found), sum(size * n for size, n in each), sum(size for size, _ in each))


def _quantized_weights(model) -> list[QuantizedWeight]:
    is_quantized = lambda leaf: isinstance(leaf, QuantizedWeight)
    return [leaf for leaf in jax.tree.leaves(model, is_leaf=is_quantized) if is_quantized(leaf)]
