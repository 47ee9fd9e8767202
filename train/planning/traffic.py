"""Counts the bytes that the non-matmul ops of a compiled step read from and write to the device's memory.

Each instruction of a scheduled program reads its operands and writes its result once; a fusion is one instruction. A
slice moves only the slice, and an in-place update only the update. Otherwise a loop that takes one layer after another
out of a stacked array would seem to read the whole array each time. Buffers that the compiler keeps on the chip (a
TPU's vector memory) do not count. Matmuls and the ops fused with them are left out, because their operands and results
are part of their own roofline (flops.py).
"""

from train.planning.collectives import KINDS
from train.planning.hlo import Computation, Instruction, Shape, multiplies

_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "iota"}
_FREE |= {"after-all", "partition-id", "replica-id", "opt-barrier", "custom-call", "add-dependency", "copy-done"}
_FREE |= {"async-start", "async-update", "async-done", "slice-done", "dot", "convolution"}
_FREE |= {kind + end for kind in KINDS for end in ("", "-start", "-done")}
_SLICES = ("dynamic-slice", "slice", "gather")


def other_bytes(program: dict[str, Computation]) -> float:
    """Returns the bytes per step on one device. `program` comes from hlo.parse."""
    total = 0.0
    for computation in program.values():
        if computation.runs and not computation.inlined:
            total += computation.runs * sum(_moved(one, computation, program) for one in computation.instructions)
    return total


def _moved(one: Instruction, computation: Computation, program) -> float:
    if one.opcode in _FREE:
        return 0
    if one.opcode in ("copy-start", "slice-start"):  # to or from the chip's own memory
        return _bytes(one.shapes[:2])
    operands = [computation.by_name[name].shapes for name in one.operands if name in computation.by_name]
    if one.opcode in _SLICES:
        return 2 * _bytes(one.shapes)
    if one.opcode == "dynamic-update-slice":
        return 2 * _bytes(operands[1])
    if one.opcode != "fusion":
        return _bytes(one.shapes) + sum(map(_bytes, operands))
    inside = program.get(one.attribute("calls").lstrip("%"))
    if inside is None or _talks(inside) or multiplies(one, program):
        return 0
    return _written(one, inside) + sum(_read(number, shapes, inside) for number, shapes in enumerate(operands))


def _read(number: int, shapes: tuple[Shape, ...], inside: Computation) -> float:
    """Returns the bytes that a fusion reads of one operand."""
    name = next(
        (i.name for i in inside.instructions if i.opcode == "parameter" and f"parameter({number})" in i.text), ""
    )
    users = [user for user in inside.instructions if name in user.operands]
    if users and all(user.opcode in _SLICES and user.operands[0] == name for user in users):
        return sum(_bytes(user.shapes) for user in users) if _bytes(shapes) else 0
    if users and all(user.opcode == "dynamic-update-slice" and user.operands[0] == name for user in users):
        return 0
    return _bytes(shapes)


def _written(one: Instruction, inside: Computation) -> float:
    root = next(i for i in inside.instructions if i.root)
    parts = [inside.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for part, shape in zip(parts, one.shapes, strict=False):
        while part.opcode in ("bitcast", "copy") and part.operands:
            part = inside.by_name[part.operands[0]]
        update = part.opcode == "dynamic-update-slice" and not shape.space
        total += _bytes(inside.by_name[part.operands[1]].shapes) if update else _bytes((shape,))
    return total


def _talks(inside: Computation) -> bool:
    return any(one.opcode.removesuffix("-start") in KINDS for one in inside.instructions)


def _bytes(shapes) -> float:
    """Returns the bytes of the shapes in main memory."""
    return sum(shape.nbytes for shape in shapes if not shape.space)
