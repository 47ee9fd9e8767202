"""A family's table of entries against one model and one folder: which tensors there must be, and whether they are."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from model.interop.files import quantized, recognize
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.interop.layout import Entry

_LISTED = 5  # names in a message
_COMPARED = 2**22  # values of two tensors that are compared at a time


class Table(NamedTuple):
    """How each parameter lies in their tensors, and what to make of other names in a folder.

    Entries of parameters that a model does not have (biases, an output layer of its own) don't count for it.
    """

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()  # patterns (re.fullmatch) of tensors that hold nothing we need, such as mask buffers
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) for re.sub: from names of old files to theirs
    # Name -> other names under which a file may hold the same tensor, in its place or beside it.
    others: Mapping[str, tuple[str, ...]] = {}
    overrides: Mapping[str, str] = {}  # name -> the name of a tensor that takes its place where a file has both

    def renamed(self, name: str) -> str:
        """Their name of a tensor that a folder has under an old one."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


class Piece(NamedTuple):
    """What one of their tensors has of one of our parameters."""

    entry: Entry
    place: tuple[int, ...]  # index into the parameter's stacked dims


class Theirs(NamedTuple):
    """One of their tensors."""

    pieces: list[Piece]  # more than one where it is fused
    sizes: dict[str, int]  # of the dims of all pieces
    shape: tuple[int, ...]


def expected(table: Table, leaves: Mapping) -> dict[str, Theirs]:
    """Their tensors that make up a model with these leaves, by name.

    Raises:
      ValueError: a parameter without an entry or with two; entries that contradict each other or the model.
    """
    paths = [entry.path for entry in table.entries]
    if without := [path for path in leaves if path not in paths]:
        raise ValueError(f"the table has no entry for the model's parameter {recognize.some(without, _LISTED)}")
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise ValueError(f"the table has more than one entry for {recognize.some(twice, _LISTED)}")
    pieces: dict[str, list[Piece]] = {}
    for entry in table.entries:
        if entry.path in leaves:
            for index, name in entry.names(leaves[entry.path].shape):
                pieces.setdefault(name, []).append(Piece(entry, index))
    return {name: _theirs(name, parts, leaves) for name, parts in pieces.items()}


def _theirs(name: str, pieces: list[Piece], leaves: Mapping) -> Theirs:
    sizes: dict[str, int] = {}
    for entry, _ in pieces:
        own = entry.sizes(leaves[entry.path].shape)
        for dim in entry.dims:
            if sizes.setdefault(dim, own[dim]) != own[dim]:
                entry.fail(f"dim {dim} is {own[dim]}, but {sizes[dim]} in another entry of {name}")
    shapes = {entry.shape(sizes) for entry, _ in pieces}
    filled = sum(math.prod(sizes[dim] for dim in entry.dims) for entry, _ in pieces)
    shape = shapes.pop()
    slots = [(entry.slot, entry.dims) for entry, _ in pieces]
    if shapes or filled != math.prod(shape) or any(slots.count(slot) > 1 for slot in slots):
        pieces[0].entry.fail(f"the entries of {name} do not fill it exactly, by their dims {list(shape)}")
    return Theirs(pieces, sizes, shape)


def match(table: Table, wanted: Mapping[str, Theirs], folder: Folder, held: str = "this model") -> dict[str, str]:
    """Their name -> the name in this folder, of all tensors that are wanted and there; `held` is what they make up.

    Raises:
      CheckpointFolderError: tensors missing, unexpected or of another shape; the message is about all of them. Or
        quantized ones.
    """
    held_as = names(table, folder)
    found = {name: file_name for name, file_name in held_as.items() if name in wanted}
    spare = set()
    for name, others in table.others.items():
        there = [other for other in others if other in held_as]
        spare |= set(there)
        if name in wanted and there:
            first = found.setdefault(name, held_as[there[0]])
            for other in there:
                if not same(folder, first, held_as[other]):
                    raise CheckpointFolderError(
                        f"{folder.path}: {first} and {held_as[other]} must be equal: {held} has one tensor for both "
                        "(tie_word_embeddings)"
                    )
    for name, other in table.overrides.items():
        if name in wanted and other in held_as:
            found[name] = held_as[other]
            spare |= {name, other}
    needless = lambda name: name in spare or any(re.fullmatch(pattern, name) for pattern in table.ignored)
    unexpected = [file for name, file in held_as.items() if name not in found and not needless(name)]
    misshapen = []
    quantized.refuse_tensors(folder, found.values(), unexpected)
    for name, file_name in found.items():
        shape = folder.tensors[file_name].shape
        if shape != wanted[name].shape:
            path = wanted[name].pieces[0].entry.path
            misshapen.append(f"{file_name} is {list(shape)}, for {path} it must be {list(wanted[name].shape)}")
    given = {entry.path for name in found for entry, _ in wanted[name].pieces}
    may_lack = lambda entry: entry.absent is not None and entry.path not in given  # in all layers, or in none
    missing = [
        name
        for name, theirs in wanted.items()
        if name not in found and not all(may_lack(entry) for entry, _ in theirs.pieces)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{len(these)} tensors are {what}: {recognize.some(these, _LISTED)}" for what, these in kinds if these]
    if problems:
        raise CheckpointFolderError(f"{folder.path} does not hold {held}: " + "; ".join(problems))
    return found


def names(table: Table, folder: Folder) -> dict[str, str]:
    """Their name -> the name in this folder, of all of its tensors.

    Raises:
      CheckpointFolderError: one tensor is there under two names.
    """
    found: dict[str, str] = {}
    for file_name in folder.tensors:
        name = table.renamed(file_name)
        if name in found:
            raise CheckpointFolderError(f"{folder.path} holds {name} twice: as {found[name]} and as {file_name}")
        found[name] = file_name
    return found


def same(folder: Folder, one: str, other: str) -> bool:
    """Whether two tensors are equal, value by value. Reads them in parts, to hold little of what may be large."""
    if one == other:
        return True
    shape = folder.tensors[one].shape
    if folder.tensors[other].shape != shape:
        return False
    if not shape:
        return bool(folder.read(one) == folder.read(other))
    rows = max(1, _COMPARED // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        part = (slice(start, min(start + rows, shape[0])), *(slice(0, size) for size in shape[1:]))
        if not (folder.read(one, part) == folder.read(other, part)).all():
            return False
    return True
