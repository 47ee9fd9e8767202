"""How long a step takes at best: a roofline from published rates, every assumption in words.

    compute      each product of the step on one chip, its dims filled up to the matrix unit's tile: the longer of its
                 FLOPs at the peak rate and its bytes at the memory's
    memory       what the compiled program moves beside its products, at the memory's rate
    collectives  bytes at the rate of the links that the devices of a group have to each other
    step         the longer of (compute + memory) and the collectives that run meanwhile, then those that are waited for

Nothing is fitted: kernels that do not reach these rates, gaps between kernels, and the host are missing, so a measured
step is slower. README compares it with published ones.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from train.planning.collectives import Collective
from train.planning.flops import Product
from train.planning.targets import Chip, Target


class Place(NamedTuple):
    """Where a device of a mesh stands: a point of its slice's torus, or (node, number) of a GPU."""

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
    hidden: float  # of collectives that run meanwhile
    waited: float  # of the others

    def found(self) -> dict[str, float]:
        return self._asdict() | {"step": max(self.compute + self.memory, self.hidden) + self.waited}


def compute_seconds(products: Sequence[Product], chip: Chip) -> float:
    return sum(product.runs * _seconds(product, chip) for product in products)


def _seconds(product: Product, chip: Chip) -> float:
    batch, *dims = product.dims
    # Only dims that fill a tile at least half are filled up: a compiler joins smaller ones with others, or swaps them.
    filled = [-(-dim // chip.tile) * chip.tile if 2 * dim >= chip.tile else dim for dim in dims]
    return max(2 * batch * math.prod(filled) / chip.flops, product.nbytes / chip.memory_bandwidth)


def talks(found: Sequence[Collective], places: Sequence[Place], target: Target) -> list[Talk]:
    """Collectives summed by kind, axes and whether they are hidden; the longest first.

    Args:
      places: of the mesh's devices, in its order.
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
    """Of one collective in a group; inside a slice (a node), then between slices (nodes), each at its own rate.

    Rings: every device receives the rest of the array once (all-reduce: twice) over all links of its group.
    All-to-all on a torus takes a quarter of an all-gather of the same array, as half of the bytes go each way and only
    half of the way round (scaling-book, "Sharded Matrices"); where every device reaches every other, its own bytes.
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
    """Bytes/s that each device of a group can receive from the others: of GPUs in a node over NVLink; of TPUs over one
    link along each dim of the torus on which they differ, two where the dim is a whole ring."""
    chip = target.chip
    if chip.platform != "tpu":
        return chip.link
    rate = 0.0
    for dim, size in enumerate(target.shape):
        extent = len({place.point[dim] for place in members})
        if extent > 1:
            rate += chip.link * (2 if extent == size and size % chip.ring == 0 else 1)
    return rate
