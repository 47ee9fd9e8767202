"""What a parameter is. weights.param records it; code that treats kinds of parameters differently reads it.

Such code includes the optimizer, decoding, quantization, adapters and counting. A parameter's name, in contrast, tells
where it is, and users' patterns match it (patterns.py).

A role is metadata of the variable. It survives jit, scans, abstract shapes and freezing. Checkpoints do not store it.
"""

import enum

from flax import nnx


class Role(enum.Enum):
    MATRIX = enum.auto()  # weight of a linear layer inside the blocks
    EXPERT = enum.auto()  # weight of the experts' linear layers, one matrix per expert
    PROJECTION = enum.auto()  # weight of a linear layer outside of the blocks: in heads and between widths
    TABLE = enum.auto()  # token vectors of the embedding or the output layer; also a tuned prompt's vectors
    POSITION = enum.auto()  # vectors of positions or token types
    DISTANCE = enum.auto()  # attention bias by the distance of query and key (T5)
    NORM = enum.auto()  # scale or bias of a norm
    BIAS = enum.auto()  # bias of a linear layer
    ROUTER = enum.auto()  # weight that scores experts
    GATE = enum.auto()  # weight of the shared expert's gate
    CORRECTION = enum.auto()  # load-balancing bias of expert scores; updated by the load, not by a gradient
    LOW_RANK = enum.auto()  # factor of a low-rank adapter
    ADAPTER = enum.auto()  # matrix of a bottleneck adapter


# The model's own matrices, which can be quantized and get low-rank adapters.
LINEAR = (Role.MATRIX, Role.EXPERT, Role.PROJECTION)
# Roles whose parameters name the dims that their product sums over.
WITH_INPUTS = (*LINEAR, Role.ADAPTER)
# Read by id instead of multiplied (the output layer multiplies its table, and is counted separately).
LOOKED_UP = (Role.TABLE, Role.POSITION)
# No matrices: used elementwise or looked up.
ELEMENTWISE = (Role.NORM, Role.BIAS, Role.DISTANCE, Role.CORRECTION)


def role_of(variable: nnx.Variable) -> Role:
    """Returns the role of a variable.

    Raises:
      ValueError: the variable has none.
    """
    found = variable.get_metadata().get("role")
    if not isinstance(found, Role):
        raise ValueError(
            f"a parameter of shape {variable.shape} does not say what it is: it has no role; make it with "
            "model.weights.param, or copy the metadata of the parameter that it replaces"
        )
    return found


def checked(role: Role, names: tuple[str, ...], inputs: tuple[str, ...]) -> Role:
    """Returns `role`, checked for a parameter with these dims and inputs.

    Raises:
      ValueError: it is not a Role, or does not match the inputs.
    """
    if not isinstance(role, Role):
        raise ValueError(f"the role of a parameter with dims {names} is {role!r}; it must be one of model.roles.Role")
    if bool(inputs) != (role in WITH_INPUTS) or not set(inputs) <= set(names):
        raise ValueError(f"a parameter with dims {names} and the role {role.name} can't have the inputs {inputs}")
    return role
