"""What happens inside a stack, on request: the hidden states and attention probabilities of chosen layers, for pictures
and for distillation. Who asks for nothing pays nothing: the program is the same.

Layers that are not chosen run as always, under a scan and by a kernel that never holds the probabilities; only chosen
ones leave the scan, and make theirs beside what they do (transformer.py). All of it has gradients.

Left out: cached decoding, and layers split over `stage`.

Dims: B batch, T queries, S keys, D embed, N heads, L layers that were asked for, in the order in which they were.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import axes
from model.config import Segment
from model.layers import HIDDEN

KINDS = ("hidden", "attention", "cross")


class Tapped(NamedTuple):
    """float32; None: not asked for."""

    hidden: jax.Array | None = None  # [L, B, T, D]
    attention: jax.Array | None = None  # [L, B, N, T, S]: of the stack to itself; rows sum to 1
    cross: jax.Array | None = None  # the same, of a decoder to the memory
    encoder_hidden: jax.Array | None = None
    encoder_attention: jax.Array | None = None


class Tap:
    """What is wanted of one stack; then, while it is traced, what was found.

    Args:
      layers: of the stack.
      hidden: states: 0 enters the first layer, n leaves the n-th one; that of the last is after the last norm.
      attention, cross: layers, counted from 0. All may count from the back by negative numbers.

    Raises:
      ValueError: a number that there is not.
    """

    def __init__(self, layers: int, *, hidden: Iterable[int] = (), attention=(), cross=()):
        self.layers, self.at = layers, 0  # at: how many layers have run
        wanted = dict(zip(KINDS, (hidden, attention, cross), strict=True))
        self._wanted = {kind: tuple(_place(kind, n, layers) for n in numbers) for kind, numbers in wanted.items()}
        self._found: dict[tuple[str, int], jax.Array] = {}

    def entered(self, x_BTD) -> None:
        self._take("hidden", 0, x_BTD)

    def left(self, x_BTD) -> None:
        """What left the stack, after the last norm."""
        self._take("hidden", self.layers, x_BTD)

    def record(self, layer: int) -> dict[str, None]:
        """A record to be filled by a layer: what is wanted of it. The last state is not the layer's, but the norm's."""
        wanted = {kind: None for kind in ("attention", "cross") if layer in self._wanted[kind]}
        return wanted | ({"hidden": None} if layer + 1 in self._wanted["hidden"] and layer + 1 < self.layers else {})

    def pieces(self, segment: Segment) -> Iterator[tuple[int, int, list[dict]]]:
        """(first repeat, the one after the last, records of its layers) of stretches of a segment: those with records
        are one repeat long, and in the others is nothing to be found."""
        records = [
            [self.record(self.at + repeat * len(segment.kinds) + place) for place in range(len(segment.kinds))]
            for repeat in range(segment.repeats)
        ]
        begin = 0
        for repeat in range(segment.repeats):
            if any(records[repeat]):
                if begin < repeat:
                    yield begin, repeat, []
                yield repeat, repeat + 1, records[repeat]
                begin = repeat + 1
        if begin < segment.repeats:
            yield begin, segment.repeats, []

    def ran(self, layers: int, records: list[dict]) -> None:
        """So many more layers have run, and filled these records."""
        for place, record in enumerate(records):
            for kind, array in record.items():
                self._take(kind, self.at + place + (kind == "hidden"), array)
        self.at += layers

    def result(self, kind: str) -> jax.Array | None:
        found = [self._found[kind, number] for number in self._wanted[kind]]
        return jnp.stack(found) if found else None

    def _take(self, kind: str, number: int, array) -> None:
        if number in self._wanted[kind]:
            array = axes.place(array, *HIDDEN) if kind == "hidden" else array
            self._found[kind, number] = array.astype(jnp.float32)


def _place(kind: str, number: int, layers: int) -> int:
    count = layers + (kind == "hidden")
    if not -count <= number < count:
        raise ValueError(f"{kind} has {number}, but of {layers} layers there are {-count} to {count - 1}")
    return number % count
