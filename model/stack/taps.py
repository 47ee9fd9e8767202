"""Hidden states and attention probabilities of chosen layers, for plots and for distillation.

Without a tap, the program is unchanged and costs nothing. With one, layers that are not chosen still run under a scan,
with a kernel that never stores the probabilities. Chosen layers leave the scan and compute theirs in addition
(transformer.py). All results are differentiable.

Left out: cached decoding, and layers split over `stage`.

Dims: B batch, T queries, S keys, D embed, N heads, L chosen layers, in the order of the request.
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
    """What was requested, in float32; None for everything else."""

    hidden: jax.Array | None = None  # [L, B, T, D]
    attention: jax.Array | None = None  # [L, B, N, T, S], self-attention; rows sum to 1
    cross: jax.Array | None = None  # [L, B, N, T, S], a decoder's attention to the memory
    encoder_hidden: jax.Array | None = None
    encoder_attention: jax.Array | None = None


class Tap:
    """What is requested of one stack, and, while it is traced, what was found.

    Args:
      layers: number of layers in the stack.
      hidden: states: 0 enters the first layer, n leaves the n-th one; the last one is taken after the final norm.
      attention, cross: layers, counted from 0. All may count from the end with negative numbers.

    Raises:
      ValueError: a number is out of range.
    """

    def __init__(self, layers: int, *, hidden: Iterable[int] = (), attention=(), cross=()):
        self.layers, self.at = layers, 0  # at: how many layers have run
        wanted = dict(zip(KINDS, (hidden, attention, cross), strict=True))
        self._wanted = {kind: tuple(_place(kind, n, layers) for n in numbers) for kind, numbers in wanted.items()}
        self._found: dict[tuple[str, int], jax.Array] = {}

    def entered(self, x_BTD) -> None:
        self._take("hidden", 0, x_BTD)

    def left(self, x_BTD) -> None:
        """Takes the state that left the stack, after the final norm."""
        self._take("hidden", self.layers, x_BTD)

    def record(self, layer: int) -> dict[str, None]:
        """Returns a record for a layer to fill. It lacks the last hidden state, which the final norm produces."""
        wanted = {kind: None for kind in ("attention", "cross") if layer in self._wanted[kind]}
        return wanted | ({"hidden": None} if layer + 1 in self._wanted["hidden"] and layer + 1 < self.layers else {})

    def pieces(self, segment: Segment) -> Iterator[tuple[int, int, list[dict]]]:
        """Yields (first repeat, end, records of its layers) for parts of a segment.

        Parts with records are one repeat long; the others contain no chosen layer.
        """
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
        """Takes the filled records of the next `layers` layers, which have run."""
        for place, record in enumerate(records):
            for kind, array in record.items():
                self._take(kind, self.at + place + (kind == "hidden"), array)
        self.at += layers

    def result(self, kind: str) -> jax.Array | None:
        """Returns the requested arrays of this kind, stacked; None if there are none."""
        found = [self._found[kind, number] for number in self._wanted[kind]]
        return jnp.stack(found) if found else None

    def _take(self, kind: str, number: int, array) -> None:
        if number in self._wanted[kind]:
            array = axes.place(array, *HIDDEN) if kind == "hidden" else array
            self._found[kind, number] = array.astype(jnp.float32)


def _place(kind: str, number: int, layers: int) -> int:
    count = layers + (kind == "hidden")
    if not -count <= number < count:
        raise ValueError(f"{kind} has {number}, but for {layers} layers it must lie in {-count} to {count - 1}")
    return number % count
