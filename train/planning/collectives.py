"""Finds the collectives of a compiled step: their kinds, bytes and mesh axes.

A program numbers devices by their place in the mesh, so the axes of a collective are those along which the places
inside one of its groups differ.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from train.planning.hlo import Computation, Instruction, multiplies

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")


class Collective(NamedTuple):
    kind: str
    axes: tuple[str, ...]  # of the mesh
    group: tuple[int, ...]  # places in the mesh of one group of devices that talk; of a permute a sender and a receiver
    payload: float  # bytes: what all-gather leaves and reduce-scatter reads on each device; else the operand of each
    runs: int  # in a step
    asynchronous: bool  # in the compiler's schedule products stand between its start and its end

    @property
    def sent(self) -> float:
        """Bytes that a device sends, each time: the least that any algorithm needs."""
        n = len(self.group)
        shares = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}
        return self.payload * shares.get(self.kind, (n - 1) / n)


def collectives(program: dict[str, Computation], mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Returns the collectives of one step, one entry per instruction, without groups of one device.

    The TPU compiler splits a collective into parts in several computations, between the matmuls that it hides behind.
    The parts share a channel and count once.

    Args:
      program: of hlo.parse.
      mesh_shape: sizes by name, in the order of the mesh's axes.
    """
    found: list[Collective] = []
    channels: dict = {}
    for computation in program.values():
        for instruction in computation.instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or not computation.runs:
                continue
            one = _collective(kind, instruction, computation, program, mesh_shape)
            if one is None:
                continue
            channel = instruction.attribute("channel_id")
            if channel and channel in channels:
                place = channels[channel]
                parts = (found[place], one)
                runs, hides = max(part.runs for part in parts), any(part.asynchronous for part in parts)
                found[place] = found[place]._replace(runs=runs, asynchronous=hides)
                continue
            channels[channel] = len(found)
            found.append(one)
    return found


def _collective(kind, instruction: Instruction, computation: Computation, program, mesh_shape) -> Collective | None:
    sizes = tuple(mesh_shape.values())
    group = first_group(instruction, int(np.prod(sizes)))
    if len(group) < 2:
        return None
    places = np.array(np.unravel_index(group, sizes))
    axes = tuple(name for name, place in zip(mesh_shape, places, strict=True) if len(set(place.tolist())) > 1)
    started = instruction.opcode.endswith("-start")
    results = instruction.shapes
    if started and kind in ("all-gather", "reduce-scatter", "collective-permute"):
        # (operands, results[, contexts]): as many of each as there are operands.
        results = results[len(instruction.operands) : 2 * len(instruction.operands)]
    payload = sum(shape.nbytes for shape in results)
    if kind == "reduce-scatter":
        payload *= len(group)
    if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        kind = "reduce-scatter"  # TPU: an all-reduce fused with the slice of it that a device keeps
    # The TPU compiler marks the collectives that it has split.
    hides = re.search(r"async_collective_name|chain_id", instruction.attribute("frontend_attributes")) is not None
    return Collective(
        kind,
        axes,
        tuple(group),
        payload,
        computation.runs,
        hides or (started and _work_until_done(instruction, computation, program)),
    )


def _work_until_done(start: Instruction, computation: Computation, program) -> bool:
    """Returns whether a matmul or a loop is scheduled between the start and the end of a collective."""
    inside = False
    for one in computation.instructions:
        if inside and start.name in one.operands:
            return False
        inside |= one is start
        if inside and (one.opcode == "while" or multiplies(one, program)):
            return True
    return False


def first_group(instruction: Instruction, devices: int) -> list[int]:
    """Returns the places of one group of an instruction. All its groups have the same form."""
    if pairs := instruction.attribute("source_target_pairs"):
        numbers = [int(number) for number in re.findall(r"\d+", pairs)]
        moving = [pair for pair in zip(numbers[::2], numbers[1::2], strict=True) if pair[0] != pair[1]]
        return list(moving[0]) if moving else []
    text = instruction.attribute("replica_groups")
    if text.startswith("mesh["):
        return _group_of_mesh(_parts(r".*?replica_groups=(mesh\[.*?\{.*?\})", instruction.text)[0])
    if text.startswith("["):
        return _iota(text).tolist()[0]
    groups = [[int(number) for number in re.findall(r"\d+", part)] for part in re.findall(r"\{([\d,]+)\}", text)]
    return max(groups, key=len) if groups else list(range(devices))


def _parts(pattern: str, text: str) -> tuple[str, ...]:
    """Returns the groups of a pattern that matches the beginning of a text.

    Raises:
      ValueError: it does not match, because another compiler writes device groups in another form.
    """
    if (found := re.match(pattern, text)) is None:
        raise ValueError(f"unknown form of device groups in the compiled program: {text[:200]}")
    return found.groups()


def _iota(text: str) -> np.ndarray:
    """'[2,4]<=[4,2]T(1,0)': numbers from 0 in the second shape, transposed, in the first one."""
    shape, source, order = _parts(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", text)
    dims = lambda part: [int(number) for number in part.split(",")]
    sizes = dims(source or shape)
    ids = np.arange(np.prod(sizes)).reshape(sizes)
    return (ids.transpose(dims(order)) if order else ids).reshape(dims(shape) if "<=" in text else -1)


def _group_of_mesh(text: str) -> list[int]:
    """ "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b':(1)2}": axes, or parts (before)size of an axis."""
    inside, rest = _parts(r"mesh\[([^\]]*)\](.*)", text)
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", inside)}
    ids = np.arange(int(np.prod(list(sizes.values()))))
    if order := re.search(r"device_ids=\((.*?\)?)\)", rest):
        ids = _iota(order[1]).reshape(-1)
    chosen = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", rest[rest.rfind("{") :])
    shape, keep = [], []
    for name, size in sizes.items():
        part = next(((before, own) for axis, before, own in chosen if axis == name), None)
        if part is None:
            shape.append(size)
            continue
        before, own = (int(part[0]), int(part[1])) if part[1] else (1, size)
        keep.append(len(shape) + 1)
        shape += [before, own, size // before // own]
    index = tuple(slice(None) if dim in keep else 0 for dim in range(len(shape)))
    return ids.reshape(shape)[index].reshape(-1).tolist()
