"""How one of our parameters is stored in their tensors: an Entry, used for both reading and writing.

Their checkpoints have one tensor per layer (and expert), and ours stack them. Theirs flatten heads into one dim and
fuse projections into one tensor; ours keep dims and parameters separate. An entry describes this in einops' style:

    Entry("stack/segments/0/0/attention/query", "model.layers.{layer}.self_attn.q_proj.weight",
          theirs="(kv_heads group head_dim) embed", ours="layer embed kv_heads group head_dim")
    Entry("stack/segments/0/0/attention/key", "transformer.h.{layer}.attn.c_attn.weight",       # GPT-2: one of three
          theirs="embed (3 kv_heads head_dim)", ours="layer embed kv_heads head_dim", slot=1)
    Entry("stack/segments/0/0/attention/key_up", "model.layers.{layer}.kv_b_proj.weight",  # DeepSeek: unequal parts
          theirs="(kv content+value) latent", ours="layer kv content latent")
    Entry("stack/segments/0/0/attention/key", "model.layers.{layer}.self_attn.qkv_proj.weight",  # Phi-3: grouped heads
          theirs="(kv group head)+(kv head)+(kv head) embed", ours="layer embed kv head", slot=1)

`ours` names the parameter's dims in order. Dims in the braces of the tensor's name come first, and select the tensor.
`(a b)` is a dim that flattens a and b, with a outermost. A number is a dim of that size that ours lacks; the entry is
index `slot` of it. `a+b` is a dim that concatenates a and b; ours has one of them, and another entry knows the size of
the other one. `(a b)+(a c)` concatenates flattened dims; the entry is part `slot` of it, and other entries know the
sizes that ours lacks. Sizes come from our parameters, so an entry works for all model sizes.

Without a divisor, both directions only copy: reading and writing a tensor keeps it bit for bit.
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
    """The requested range of one of the dims that make up a dim of theirs."""

    dim: str | None  # our dim; None: a number, of which the entry has one slot
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

    path: str  # our name, e.g. 'stack/segments/0/0/attention/query'
    name: str  # their name, with {layer} or other dims of ours in braces
    theirs: str
    ours: str
    slot: int | None = None
    layers: range | None = None  # their layer numbers of our layers, in order; None: 0, 1, 2, ...
    absent: float | None = None  # the parameter's value if the file lacks the tensor; None: that is an error
    divisor: Callable[[int], float] | None = None  # layer number -> divisor of the tensor when it is read

    def __post_init__(self):
        joined = [len(parts) for parts in self.parts if len(parts) > 1]
        if len(joined) > 1 or any(not 0 <= (-1 if self.slot is None else self.slot) < count for count in joined):
            self.fail("slot must select a part of the one concatenation in theirs")
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
        if len(numbers) + len(joined) != (self.slot is not None) or any(not 0 <= self.slot < int(n) for n in numbers):
            self.fail("slot must select a part of the one number in theirs")

    @functools.cached_property
    def their_dims(self) -> list[str]:
        """The text of each of their dims."""
        return re.findall(r"(?:\([^()]*\)|[^()\s])+", self.theirs)

    @functools.cached_property
    def parts(self) -> list[list[list[str]]]:
        """The parts that each of their dims concatenates, each as its factors; a dim that is whole has one part."""
        return [[part.strip("()").split() for part in re.split(r"(?<=\))\+(?=\()", dim)] for dim in self.their_dims]

    @functools.cached_property
    def groups(self) -> list[list[str]]:
        """The factors of our part of each of their dims, outermost first."""
        return [parts[self.slot or 0] if len(parts) > 1 else parts[0] for parts in self.parts]

    @functools.cached_property
    def stacked(self) -> list[str]:
        """Our leading dims, of which each of their tensors holds one index."""
        return self.ours.split()[: len(set(re.findall(r"\{(\w+)\}", self.name)))]

    @functools.cached_property
    def dims(self) -> list[str]:
        """Our other dims."""
        return self.ours.split()[len(self.stacked) :]

    def fail(self, what: str):
        """Raises a ValueError about this entry."""
        raise ValueError(f"entry {self.path} <-> {self.name} ({self.ours!r} <-> {self.theirs!r}): {what}")

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Returns the size of each of our dims, given our parameter's shape."""
        if len(shape) != len(self.ours.split()):
            self.fail(f"our parameter has {len(shape)} dims: {shape}")
        return dict(zip(self.ours.split(), shape, strict=True))

    def names(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yields (index into the stacked dims, tensor name) of all their tensors for a parameter of this shape."""
        counts = self.sizes(shape)
        numbers = {dim: range(counts[dim]) for dim in self.stacked}
        if self.layers is not None:
            if len(self.layers) != counts.get("layer"):
                self.fail(f"layers lists {len(self.layers)} of them, our parameter has shape {shape}")
            numbers["layer"] = self.layers
        for index in itertools.product(*(range(counts[dim]) for dim in self.stacked)):
            at = {dim: numbers[dim][i] for dim, i in zip(self.stacked, index, strict=True)}
            yield index, self.name.format(**at)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the shape of their tensor, given the sizes of our dims and of the other parts of `a+b`."""
        return tuple(sum(self._size(part, sizes) for part in parts) for parts in self.parts)

    def take(self, read: Callable, sizes: Mapping[str, int], wanted: Mapping[str, Range]) -> np.ndarray:
        """Reads theirs as ours: the part `wanted` (start and stop by dim) of the parameter, as a view.

        Args:
          read: index (a slice for each of their dims) -> array. It is asked only for the smallest run of each dim that
            contains the wanted part (see _run): exactly that part, unless a dim is split that is not outermost in its
            parentheses.
        """
        runs = [_run(group) for group in self._factors(sizes, wanted)]
        factors = [factor for _, inside in runs for factor in inside]
        places = [
            slice(own.start + run.start, own.start + run.stop)
            for (run, _), own in zip(runs, self._own(sizes), strict=True)
        ]
        return self._ours(read(tuple(places)), factors)

    def put(self, array: np.ndarray, tensor: np.ndarray, sizes: Mapping[str, int]) -> None:
        """Writes ours as theirs: one index of the stacked dims into its place in `tensor` (contiguous)."""
        factors = list(itertools.chain.from_iterable(self._factors(sizes, {})))
        self._ours(tensor[self._own(sizes)], factors)[...] = array

    def _own(self, sizes: Mapping[str, int]) -> tuple[slice, ...]:
        """Returns our part of each of their dims: all of it, unless the dim concatenates parts."""
        own = []
        for parts, group in zip(self.parts, self.groups, strict=True):
            start = sum(self._size(part, sizes) for part in parts[: self.slot]) if len(parts) > 1 else 0
            own.append(slice(start, start + self._size(group, sizes)))
        return tuple(own)

    def _size(self, group: list[str], sizes: Mapping[str, int]) -> int:
        return math.prod(self._total(factor, sizes) for factor in group)

    def _total(self, factor: str, sizes: Mapping[str, int]) -> int:
        """Returns the size of a factor of theirs."""
        if factor.isdigit():
            return int(factor)
        if unknown := [part for part in factor.split("+") if part not in sizes]:
            self.fail(f"no entry of this tensor gives the size of {unknown[0]}")
        return sum(sizes[part] for part in factor.split("+"))

    def _ours(self, tensor: np.ndarray, factors: list[Factor]) -> np.ndarray:
        """Returns our part of a tensor with these factors, with our order of dims. A view."""
        part = tensor.reshape([factor.total for factor in factors])[tuple(factor.part for factor in factors)]
        left = [factor.dim for factor in factors if factor.dim is not None]  # indexing with a slot drops its dim
        return part.transpose([left.index(dim) for dim in self.dims])

    def _factors(self, sizes: Mapping[str, int], wanted: Mapping[str, Range]) -> list[list[Factor]]:
        """Returns the factors of each of their dims, restricted to the wanted part of our dims."""

        def factor(text: str) -> Factor:
            total = self._total(text, sizes)
            if text.isdigit():
                slot = self.slot or 0  # __post_init__ checks that there is one
                return Factor(None, slot, slot + 1, total)
            parts = text.split("+")
            own = next(part for part in parts if part in self.dims)
            before = sum(sizes[part] for part in parts[: parts.index(own)])
            start, stop = wanted.get(own, (0, sizes[own]))
            return Factor(own, before + start, before + stop, total)

        return [[factor(text) for text in group] for group in self.groups]


def _run(group: list[Factor]) -> tuple[slice, list[Factor]]:
    """Returns the smallest run of one of their dims that contains the wanted part, and the factors inside this run.

    For a dim `(kv group head_dim)` of 2 x 3 x 4, two examples of wanted parts (#), with the run in brackets:

        kv                         0                    1
        group                      0    1    2          0    1    2
        kv 1:2, group 1:3        ....|....|....  ||  ....[####|####]     the run is exactly the wanted part
        head_dim 1:3            [.##.|.##.|.##.  ||  .##.|.##.|.##.]     head_dim is sliced in memory

    So factors narrow the run, from the outside, up to the first that is more than one index wide. That factor and those
    before it have no other index in the run, and those after it are whole.
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
