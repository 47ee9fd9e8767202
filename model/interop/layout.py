"""How one of our parameters lies in their tensors: one Entry, read in both directions.

Theirs is one tensor for each layer (and expert), ours are stacked; theirs flatten heads into one dim and fuse
projections into one tensor, ours keep dims and parameters apart. An entry says it in the manner of einops:

    Entry("stack/segments/0/0/attention/query", "model.layers.{layer}.self_attn.q_proj.weight",
          theirs="(kv_heads group head_dim) embed", ours="layer embed kv_heads group head_dim")
    Entry("stack/segments/0/0/attention/key", "transformer.h.{layer}.attn.c_attn.weight",       # GPT-2: one of three
          theirs="embed (3 kv_heads head_dim)", ours="layer embed kv_heads head_dim", slot=1)
    Entry("stack/segments/0/0/attention/key_up", "model.layers.{layer}.kv_b_proj.weight",  # DeepSeek: unequal parts
          theirs="(kv content+value) latent", ours="layer kv content latent")

Every name in `ours` is a dim of the parameter, in its order; those that stand in the name's braces come first and say
which tensor. `(a b)` is a dim in which a and b are flattened, a outermost. A number is a dim of that size that ours
does not have: the entry is its `slot`. `a+b` is a dim in which a and b lie one after the other; ours has one of them,
and the size of the other is known from its own entry. Sizes come from our parameters, so an entry holds for all sizes.

Both directions only copy, unless an entry has a divisor: a tensor that is read and written again is the same bit for
bit.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Range = tuple[int, int]


class Factor(NamedTuple):
    """What is wanted of one of the dims that a dim of theirs is made of."""

    dim: str | None  # ours; None: a number, of which the entry has one slot
    start: int
    stop: int
    total: int  # its size in theirs

    @property
    def part(self) -> int | slice:
        return self.start if self.dim is None else slice(self.start, self.stop)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters in their checkpoint.

    Raises:
      ValueError: the entry contradicts itself; the message names it.
    """

    path: str  # ours, e.g. 'stack/segments/0/0/attention/query'
    name: str  # theirs, with {layer} or other dims of ours in braces
    theirs: str
    ours: str
    slot: int | None = None
    layers: range | None = None  # the numbers their names give to our layers, in order; None: 0, 1, 2, ...
    absent: float | None = None  # what fills the parameter where the file has no such tensor; None: the file must
    divisor: Callable[[int], float] | None = None  # of a tensor that is read, by the number of its layer

    def __post_init__(self):
        named = [name for group in self.groups for factor in group for name in factor.split("+")]
        numbers, named = [n for n in named if n.isdigit()], [n for n in named if not n.isdigit()]
        dims, stacked = self.ours.split(), re.findall(r"\{(\w+)\}", self.name)
        if len({*dims}) < len(dims) or len({*named}) < len(named):
            self.fail("a dim appears twice")
        if {*dims[: len(stacked)]} != {*stacked} or {*stacked} & {*named}:
            self.fail("the dims in the name's braces must come first in ours, and only there")
        if missing := [dim for dim in self.dims if dim not in named]:
            self.fail(f"dim {missing[0]} is not in theirs")
        for factor in itertools.chain.from_iterable(self.groups):
            if not factor.isdigit() and sum(name in self.dims for name in factor.split("+")) != 1:
                self.fail(f"dim {factor} is not in ours" if "+" not in factor else f"ours must have one of {factor}")
        if len(numbers) != (self.slot is not None) or any(not 0 <= self.slot < int(n) for n in numbers):
            self.fail("slot must say which part of the one number in theirs this is")

    @functools.cached_property
    def groups(self) -> list[list[str]]:
        """The factors of each dim of theirs, outermost first."""
        return [(group or single).split() for group, single in re.findall(r"\(([^()]*)\)|([^()\s]+)", self.theirs)]

    @functools.cached_property
    def stacked(self) -> list[str]:
        """The leading dims of ours, of which a tensor of theirs has one index each."""
        return self.ours.split()[: len(set(re.findall(r"\{(\w+)\}", self.name)))]

    @functools.cached_property
    def dims(self) -> list[str]:
        """The other dims of ours."""
        return self.ours.split()[len(self.stacked) :]

    def fail(self, what: str):
        raise ValueError(f"entry {self.path} <-> {self.name} ({self.ours!r} <-> {self.theirs!r}): {what}")

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Size of each of our dims, from our parameter's shape."""
        if len(shape) != len(self.ours.split()):
            self.fail(f"our parameter has {len(shape)} dims: {shape}")
        return dict(zip(self.ours.split(), shape, strict=True))

    def names(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into the stacked dims, name of their tensor) of all tensors that make up a parameter of this shape."""
        counts = self.sizes(shape)
        numbers = {dim: range(counts[dim]) for dim in self.stacked}
        if self.layers is not None:
            if len(self.layers) != counts.get("layer"):
                self.fail(f"layers names {len(self.layers)} of them, our parameter has shape {shape}")
            numbers["layer"] = self.layers
        for index in itertools.product(*(range(counts[dim]) for dim in self.stacked)):
            at = {dim: numbers[dim][i] for dim, i in zip(self.stacked, index, strict=True)}
            yield index, self.name.format(**at)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of their tensor. `sizes`: of our dims, and of the parts of unequal size that other entries have."""
        return tuple(math.prod(factor.total for factor in group) for group in self._factors(sizes, {}))

    def take(self, read: Callable, sizes: Mapping[str, int], wanted: Mapping[str, Range]) -> np.ndarray:
        """Theirs -> ours: the part `wanted` (start and stop by dim) of the parameter, as a view.

        Args:
          read: index (a slice for each dim of theirs) -> array. Asked for no more than the smallest run of each dim
            that holds what is wanted (_run): exactly that, unless a dim is cut that is not outermost in its
            parentheses.
        """
        runs = [_run(group) for group in self._factors(sizes, wanted)]
        factors = [factor for _, inside in runs for factor in inside]
        return self._ours(read(tuple(run for run, _ in runs)), factors)

    def put(self, array: np.ndarray, tensor: np.ndarray, sizes: Mapping[str, int]) -> None:
        """Ours -> theirs: write one index of the stacked dims into its place in `tensor` (contiguous)."""
        factors = list(itertools.chain.from_iterable(self._factors(sizes, {})))
        self._ours(tensor, factors)[...] = array

    def _ours(self, tensor: np.ndarray, factors: list[Factor]) -> np.ndarray:
        """Our part of a tensor that is made of these factors, with our dims in their order. A view."""
        part = tensor.reshape([factor.total for factor in factors])[tuple(factor.part for factor in factors)]
        left = [factor.dim for factor in factors if factor.dim is not None]  # a slot's index has taken its dim away
        return part.transpose([left.index(dim) for dim in self.dims])

    def _factors(self, sizes: Mapping[str, int], wanted: Mapping[str, Range]) -> list[list[Factor]]:
        """The factors of each dim of theirs, cut to what is wanted of our dims."""

        def factor(text: str) -> Factor:
            if text.isdigit():
                slot = self.slot or 0  # there is one, as checked at the beginning
                return Factor(None, slot, slot + 1, int(text))
            parts = text.split("+")
            if unknown := [part for part in parts if part not in sizes]:
                self.fail(f"no entry of this tensor says how large {unknown[0]} is")
            own = next(part for part in parts if part in self.dims)
            before = sum(sizes[part] for part in parts[: parts.index(own)])
            start, stop = wanted.get(own, (0, sizes[own]))
            return Factor(own, before + start, before + stop, sum(sizes[part] for part in parts))

        return [[factor(text) for text in group] for group in self.groups]


def _run(group: list[Factor]) -> tuple[slice, list[Factor]]:
    """The smallest run of one dim of theirs that holds what is wanted, and the factors of this run.

    Of a dim `(kv group head_dim)` of 2 x 3 x 4, two things that may be wanted (#), and the run in brackets:

        kv                         0                    1
        group                      0    1    2          0    1    2
        kv 1:2, group 1:3        ....|....|....  ||  ....[####|####]     the run is what is wanted
        head_dim 1:3            [.##.|.##.|.##.  ||  .##.|.##.|.##.]     head_dim is cut in memory

    So factors narrow the run, from outside, up to the first that is more than one index wide; it and those before it
    have no other index left in the run, and those behind it are whole in it.
    """
    low, high, narrowing, inside = 0, 0, True, []
    inner = math.prod(factor.total for factor in group)
    for factor in group:
        inner //= factor.total
        if narrowing:
            low, high = low + factor.start * inner, low + factor.stop * inner
            width = factor.stop - factor.start
            narrowing, factor = width <= 1, Factor(factor.dim, 0, width, width)
        inside.append(factor)
    return slice(low, high), inside
