"""Estimates the shortest time of a step: a roofline from published rates.

    compute      each matmul of the step on one chip, with dims padded to the matrix unit's tile: the longer of its
                 FLOPs at the peak rate and its bytes at the memory's rate
    memory       bytes that non-matmul ops of the compiled program move, at the memory's rate
    collectives  bytes at the rate of the links between the devices of a group
    step         the longer of (compute + memory) and the hidden collectives, plus the exposed ones

Nothing is fitted. Kernels that do not reach these rates, gaps between kernels, and the host are not modelled, so a
measured step is slower. The README compares estimates with published measurements.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from train.planning.collectives import Collective
from train.planning.flops import Product
from train.planning.targets import Chip, Target


class Place(NamedTuple):
    """The place of a device: its slice and its point in the slice's torus; for a GPU the point is (node, number)."""

    slice: int
    point: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Talk:
    """All collectives of one kind over the same axes that are hidden behind compute, or all that are not."""

    kind: str
    axes: tuple[str, ...]
    count: int  # how many run in a step
    nbytes: float  # bytes that one chip sends in a step
    seconds: float  # per step
    hidden: bool  # whether they run while the chip computes


class Times(NamedTuple):
    """Seconds of one step."""

    compute: float
    memory: float
    hidden: float  # collectives that run while the chip computes
    waited: float  # exposed collectives

    def found(self) -> dict[str, float]:
        return self._asdict() | {"step": max(self.compute + self.memory, self.hidden) + self.waited}


def compute_seconds(products: Sequence[Product], chip: Chip) -> float:
    return sum(product.runs * _seconds(product, chip) for product in products)


def _seconds(product: Product, chip: Chip) -> float:
    batch, *dims = product.dims
    # Only dims of at least half a tile are padded: compilers merge smaller dims with others, or swap operands.
    filled = [-(-dim // chip.tile) * chip.tile if 2 * dim >= chip.tile else dim for dim in dims]
    return max(2 * batch * math.prod(filled) / chip.flops, product.nbytes / chip.memory_bandwidth)


def talks(found: Sequence[Collective], places: Sequence[Place], target: Target) -> list[Talk]:
    """Returns the collectives summed by kind, axes and whether they are hidden, the longest first.

    Args:
      found: of collectives.collectives.
      places: of the mesh's devices, in the mesh's order.
      target: the chips.
    """
    sums: dict[tuple[str, tuple[str, ...], bool], tuple[int, float, float]] = {}
    for one in found:
        members = [places[index] for index in one.group]
        key = (one.kind, one.axes, one.asynchronous)
        count, nbytes, seconds = sums.get(key, (0, 0.0, 0.0))
        once = collective_seconds(one, members, target)
        sums[key] = (count + one.runs, nbytes + one.sent * one.runs, seconds + once * one.runs)
    listed = [Talk(kind, axes, *value, hidden) for (kind, axes, hidden), value in sums.items()]
    return sorted(listed, key=lambda talk: -talk.seconds)


def collective_seconds(one: Collective, members: Sequence[Place], target: Target) -> float:
    """Returns the seconds of one collective in a group: inside a slice (node), then between slices (nodes).

    Ring algorithms are assumed: every device receives the rest of the array once (twice for all-reduce) over all links
    of its group. On a torus, an all-to-all takes a quarter of the time of an all-gather of the same array, because half
    of the bytes go in each direction, and only half of the way round (scaling-book, "Sharded Matrices"). If every
    device reaches every other, each sends only its own bytes.
    """
    chip = target.chip
    groups: dict[int, list[Place]] = {}
    for place in members:
        groups.setdefault(place.slice if chip.platform == "tpu" else place.point[0], []).append(place)
    inside = max(groups.values(), key=len)
    times = 2 if one.kind == "all-reduce" else 1
    seconds = 0.0
    if len(inside) > 1:
        share = one.payload * (len(inside) - 1) / len(inside)
        if "all-to-all" in one.kind:
            share *= len(inside) / 4 if chip.platform == "tpu" else 1
        if one.kind == "collective-permute":
            share = one.payload
        rate = chip.link if one.kind == "collective-permute" else ring_rate(inside, target)
        seconds += times * share / rate
    if len(groups) > 1:
        n = len(groups)
        share = one.payload if one.kind == "collective-permute" else one.payload * (n - 1) / n
        seconds += times * share / (chip.network * len(inside))
    return seconds


def ring_rate(members: Sequence[Place], target: Target) -> float:
    """Returns the bytes/s that each device of a group can receive from the others.

    GPUs of a node use NVLink. TPUs use one link along each torus dim on which they differ, or two if the group spans
    the dim and it closes to a ring.
    """
    chip = target.chip
    if chip.platform != "tpu":
        return chip.link
    rate = 0.0
    for dim, size in enumerate(target.shape):
        extent = len({place.point[dim] for place in members})
        if extent > 1:
            rate += chip.link * (2 if extent == size and size % chip.ring == 0 else 1)
    return rate
