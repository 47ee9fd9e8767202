"""What a parameter is: said where it is made (weights.param), read by whoever treats kinds of parameters differently.

That are the optimizer, decoding, quantization, adapters and counting. A name says where a parameter is, and is what
users' patterns choose by (patterns.py).

A role is metadata of the variable. It goes with it through jit, scans, shapes and marks of what trains, and is in no
checkpoint.
"""

import enum

from flax import nnx


class Role(enum.Enum):
    MATRIX = enum.auto()  # of a linear layer inside the blocks
    EXPERT = enum.auto()  # such matrices of experts, one each
    PROJECTION = enum.auto()  # of a linear layer outside of the blocks: between widths, and in heads
    TABLE = enum.auto()  # vectors of tokens: they come in by them, or are scored by them; a prompt's as well
    POSITION = enum.auto()  # vectors of positions and of token types
    DISTANCE = enum.auto()  # scores by the distance of query and key (T5)
    NORM = enum.auto()  # scale or bias of a norm
    BIAS = enum.auto()  # of a linear layer
    ROUTER = enum.auto()  # scores experts
    GATE = enum.auto()  # how much of the shared expert is taken
    CORRECTION = enum.auto()  # what is added to experts' scores for choosing; moved by their load, not by a gradient
    LOW_RANK = enum.auto()  # a factor of a low-rank adapter
    ADAPTER = enum.auto()  # matrix of a bottleneck adapter


# Matrices of a model itself: they may be quantized and have low-rank adapters.
LINEAR = (Role.MATRIX, Role.EXPERT, Role.PROJECTION)
# Which say over what dims they sum.
WITH_INPUTS = (*LINEAR, Role.ADAPTER)
# Read by id, and not multiplied (the output layer's is, and is counted apart).
LOOKED_UP = (Role.TABLE, Role.POSITION)
# Added, or multiplied with each feature by itself: no products.
ELEMENTWISE = (Role.NORM, Role.BIAS, Role.DISTANCE, Role.CORRECTION)


def role_of(variable: nnx.Variable) -> Role:
    """
    Raises:
      ValueError: it says none.
    """
    found = variable.get_metadata().get("role")
    if not isinstance(found, Role):
        raise ValueError(
            f"a parameter of shape {variable.shape} does not say what it is: make it with model.weights.param, or copy "
            "the metadata of the one that it stands for"
        )
    return found


def checked(role: Role, names: tuple[str, ...], inputs: tuple[str, ...]) -> Role:
    """`role`, of a parameter with these dims and inputs.

    Raises:
      ValueError: it is none, or does not go with them.
    """
    if not isinstance(role, Role):
        raise ValueError(f"the role of a parameter with dims {names} is {role!r}; it must be one of model.roles.Role")
    if bool(inputs) != (role in WITH_INPUTS) or not set(inputs) <= set(names):
        raise ValueError(f"a parameter with dims {names} and the role {role.name} can't have the inputs {inputs}")
    return role
