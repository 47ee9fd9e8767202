"""Checks a family's table of entries against a model and a folder: which tensors there must be, and which there are."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from model.interop.files import quantized, recognize
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.interop.layout import Entry

_LISTED = 5  # names listed in a message
_COMPARED = 2**22  # values compared at a time


class Table(NamedTuple):
    """How each parameter is stored in their tensors, and how to treat other names in a folder.

    Entries of parameters that a model lacks (biases, an untied output layer) are ignored for it.
    """

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()  # patterns (re.fullmatch) of tensors that we don't need, such as mask buffers
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) for re.sub: from old files' names to theirs
    # Name -> alternative names under which a file may store the same tensor, instead or in addition.
    others: Mapping[str, tuple[str, ...]] = {}
    overrides: Mapping[str, str] = {}  # name -> the tensor that replaces it if a file has both

    def renamed(self, name: str) -> str:
        """Returns the current name of a tensor that a folder stores under an old one."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


class Piece(NamedTuple):
    """The part of one of our parameters that one of their tensors stores."""

    entry: Entry
    place: tuple[int, ...]  # index into the parameter's stacked dims


class Theirs(NamedTuple):
    """One of their tensors."""

    pieces: list[Piece]  # several if the tensor is fused
    sizes: dict[str, int]  # of all pieces' dims
    shape: tuple[int, ...]


def expected(table: Table, leaves: Mapping) -> dict[str, Theirs]:
    """Returns their tensors for a model with these leaves, by name.

    Raises:
      ValueError: a parameter has no entry or two; or entries contradict each other or the model.
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
    """Returns their name -> the name in this folder, for all tensors that are wanted and present.

    Args:
      held: what the tensors make up, for errors.

    Raises:
      CheckpointFolderError: tensors are missing, unexpected or of another shape (the message covers all of them), or
        quantized.
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
    may_lack = lambda entry: entry.absent is not None and entry.path not in given  # only if no layer has it
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
    """Returns their name -> the name in this folder, for all tensors of the folder.

    Raises:
      CheckpointFolderError: a tensor is stored under two names.
    """
    found: dict[str, str] = {}
    for file_name in folder.tensors:
        name = table.renamed(file_name)
        if name in found:
            raise CheckpointFolderError(f"{folder.path} holds {name} twice: as {found[name]} and as {file_name}")
        found[name] = file_name
    return found


def same(folder: Folder, one: str, other: str) -> bool:
    """Returns whether two tensors have equal values. Reads them in parts, because they may be large."""
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
