"""Parses the text of a compiled XLA program: its computations, and how often each one runs in a step.

Only names, opcodes, shapes, operands and calls are read, because a plan needs no more. Loops run as often as their
`known_trip_count` says. The TPU compiler does not print it; there the constant counts that the loop's condition
compares the counter with, which is how scans are lowered.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8}
BYTES |= {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}  # 8-bit floats: see nbytes

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(body|calls|to_apply|branch_computations|true_computation|false_computation)=\{?([^,}]+[^}=]*)"
)
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


class Shape(NamedTuple):
    dtype: str
    dims: tuple[int, ...]
    space: int  # memory space; 0 is the device's main memory, others are on the chip

    @property
    def nbytes(self) -> float:
        size = BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0)
        for dim in self.dims:
            size *= dim
        return size


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # as printed; a tuple's in parentheses
    opcode: str
    operands: tuple[str, ...]
    text: str  # the whole line
    root: bool

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of its result; several if it is a tuple."""
        return shapes(self.shape)

    def attribute(self, name: str) -> str:
        """Returns the text of an attribute, up to the next comma outside of brackets; '' if there is none."""
        start = self.text.find(f" {name}=")
        if start < 0:
            return ""
        start += len(name) + 2
        return self.text[start : start + _length(self.text[start:])]


@dataclasses.dataclass
class Computation:
    name: str
    instructions: list[Instruction]
    runs: int = 0  # per step
    inlined: bool = False  # whether it is part of one instruction of its caller: a fusion or a reducer

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}


def parse(text: str) -> dict[str, Computation]:
    """Returns the computations of a module by name, with how often each runs.

    Args:
      text: of `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: it is not the text of a module.
    """
    found, current, entry = {}, None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = found[header[1]] = Computation(header[1], [])
            entry = current if line.startswith("ENTRY") else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.instructions.append(_instruction(match, line))
    if entry is None:
        raise ValueError("not the text of an XLA module: no ENTRY computation")
    entry.runs = 1
    for computation in reversed(list(found.values())):  # XLA prints callers after the computations that they call
        for instruction in computation.instructions:
            for key, names in _CALLED.findall(instruction.text):
                trips = trip_count(instruction, found) if key == "body" else 1
                for name in re.findall(r"%?([\w.\-]+)", names):
                    if name in found:
                        found[name].runs += computation.runs * trips
                        inlined = instruction.opcode == "fusion" or (key == "to_apply" and instruction.opcode != "call")
                        found[name].inlined |= inlined or computation.inlined
    return found


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int:
    """Returns how often the body of a `while` runs, or 1 if that is unknown."""
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    condition = computations.get(loop.attribute("condition").lstrip("%"))
    if condition is None:
        return 1
    constants = [
        int(value[1])
        for instruction in condition.instructions
        if instruction.opcode == "constant" and (value := re.search(r"\bconstant\((\d+)\)", instruction.text))
    ]
    return max(constants, default=1)


def multiplies(one: Instruction, program: dict[str, Computation]) -> bool:
    """Returns whether an instruction is a matmul, a kernel (custom call), or a fusion with one of these."""
    if one.opcode in ("dot", "convolution"):
        return True
    if one.opcode == "custom-call":
        return 'custom_call_target="AllocateBuffer"' not in one.text
    inside = program.get(one.attribute("calls").lstrip("%")) if one.opcode == "fusion" else None
    return inside is not None and any(multiplies(part, program) for part in inside.instructions)


def shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(dim) for dim in dims.split(",") if dim)
        found.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def _instruction(match: re.Match, line: str) -> Instruction:
    rest = match[3]
    end = _length(rest, " ")
    shape, rest = rest[:end], rest[end + 1 :]
    opcode, _, rest = rest.partition("(")
    inside = rest[: _length(rest, ")")]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(match[2], shape, opcode, operands, line, bool(match[1]))


def _length(text: str, stop: str = ",") -> int:
    """Returns the number of characters before the first `stop` outside of brackets."""
    depth = 0
    for index, character in enumerate(text):
        if depth == 0 and character == stop:
            return index
        depth += (character in "([{") - (character in ")]}")
    return len(text)
