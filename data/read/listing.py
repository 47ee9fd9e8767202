"""Lists the files of a path, a folder or a glob, each real file once.

Symbolic links are followed, and a file with several paths is read once. Its document is named by the path without links
if there is one, else by the first path in alphabetical order. So a link that is added later renames no document, and
moves none from training to the held-out split. (Only paths with a known suffix count, because download caches name
files by a hash and put the suffix on links to them.) `Listing.unread` gives a reason for everything that was found and
is not read.
"""

import fnmatch
import glob
import itertools
import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.batch import DataError

# Reasons why something is not read.
_NOWHERE = "broken links"
_AGAIN = "further paths to files or folders that are read"
_SPECIAL = "neither files nor folders"
_FOLDERS = "folders, because the pattern has no **"


class Listing(NamedTuple):
    """The files to read."""

    name: str  # of the source, made from the last part of its path
    root: Path  # names of documents are relative to it
    files: list[Path]  # in the order of their names
    unread: dict[str, list[Path]]  # reason -> paths that were found and are not read

    def notes(self) -> list[str]:
        """Returns a line for each reason, for a person to read."""
        return [f"not read: {why} ({len(paths):,}): {_first(paths)}" for why, paths in self.unread.items()]


def find_files(pattern: str, suffixes: Sequence[str], elsewhere: str) -> Listing:
    """Returns the files of a path, a folder (with everything in it) or a glob.

    Args:
      pattern: the path, folder or glob.
      suffixes: those of the files that can be read, in lower case; a file's own suffix may be in upper case.
      elsewhere: a sentence on which source reads files of other kinds.

    Raises:
      DataError: there are no files, a named or matched file is of another kind, or a folder can't be listed.
    """
    if not pattern:
        raise DataError("A data source has an empty path (a variable in the command may not be set).")
    pattern = os.path.expanduser(pattern)
    path = Path(pattern)
    unread: defaultdict[str, list[Path]] = defaultdict(list)
    whole_folder = path.is_dir()
    if path.is_file():
        root, found = path.parent, [path]
    elif whole_folder:
        root = path
        found = [file for folder in _folders(path, lambda name: True, unread) for file in _entries(folder)]
    elif glob.has_magic(pattern):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        found = list(_matches(root, path.parts[len(root.parts) :], unread)) if root.is_dir() else []
    elif path.is_symlink():
        raise DataError(f"{pattern} is a link to {os.readlink(pattern)}, which does not exist.")
    else:
        raise DataError(f"There is no file or folder {pattern}.")
    can_read = lambda file: file.name.lower().endswith(tuple(suffixes))
    files = _real_files(found, root, can_read, unread, recursive=whole_folder or "**" in path.parts)
    readable = list(filter(can_read, files))
    kinds = f"these can be read: {', '.join(suffixes)}. {elsewhere}"
    if others := sorted(set(files) - set(readable)):
        if not whole_folder:
            raise DataError(f"{others[0]}: unknown kind of file; {kinds}")
        counts = Counter(file.suffix or "without a suffix" for file in others)
        unread[f"files of other kinds ({', '.join(f'{kind} {n:,}' for kind, n in counts.most_common(5))})"] = others
    listing = Listing(slug(path.name), root, readable, dict(unread))
    if not readable:
        raise DataError(" ".join([f"No file matches {pattern}; {kinds}", *(f"{note}." for note in listing.notes())]))
    return listing


def _real_files(
    found: Sequence[Path], root: Path, can_read: Callable[[Path], bool], unread: dict, recursive: bool
) -> list[Path]:
    """Returns the files among `found`, each real one under its best path, in the order of their names."""
    paths = defaultdict(list)
    for path in dict.fromkeys(found):
        if os.path.isfile(path):
            paths[_identity(path)].append(path)
        elif os.path.isdir(path):
            unread[_FOLDERS] += [path] * (not recursive)
        else:
            unread[_NOWHERE if path.is_symlink() else _SPECIAL].append(path)
    name = lambda file: file.relative_to(root).as_posix()
    # In download caches the link has the suffix, and the file itself is named by a hash.
    rank = lambda file: (not can_read(file), _by_link(file, root), name(file))
    files = []
    for same in paths.values():
        best, *others = sorted(same, key=rank) if len(same) > 1 else same
        files.append(best)
        unread[_AGAIN] += others
    for why in [why for why, paths in unread.items() if not paths]:
        del unread[why]
    return sorted(files, key=name)


def _by_link(file: Path, root: Path) -> bool:
    parts = file.relative_to(root).parts
    return any(root.joinpath(*parts[: i + 1]).is_symlink() for i in range(len(parts)))


def _identity(path: Path) -> object:
    """Returns a value that all paths to one file or folder share."""
    stat = path.stat()
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)  # some network drives have no inodes


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        raise DataError(
            f"The folder {folder} can't be listed: {error.strerror}. Change its permissions, or leave it out."
        ) from None


def _folders(start: Path, wanted: Callable[[str], bool], unread: dict) -> Iterator[Path]:
    """Yields the folder `start` and all folders below it, each real one once, and those behind links last."""
    plain, linked = deque([start]), deque[Path]()
    seen = set()
    while plain or linked:
        folder = (plain or linked).popleft()
        identity = _identity(folder)
        if identity in seen:
            unread[_AGAIN].append(folder)
            continue
        seen.add(identity)
        yield folder
        for path in _entries(folder):
            if wanted(path.name) and os.path.isdir(path):
                (linked if path.is_symlink() else plain).append(path)


def _matches(path: Path, parts: Sequence[str], unread: dict) -> Iterator[Path]:
    """Yields what the parts of a glob match below `path`, as glob.glob(recursive=True), but without loops."""
    if not parts:
        yield path
        return
    part, rest = parts[0], parts[1:]
    shown = lambda name: not name.startswith(".") or part.startswith(".")
    if part == "**":
        for folder in _folders(path, shown, unread):
            yield from _matches(folder, rest or ("*",), unread)
        return
    if glob.has_magic(part):
        below = [entry for entry in _entries(path) if shown(entry.name) and fnmatch.fnmatchcase(entry.name, part)]
    else:
        below = [path / part] if os.path.lexists(path / part) else []
    for entry in below:
        if not rest or os.path.isdir(entry):
            yield from _matches(entry, rest, unread)


def _first(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")


def document_name(file: Path, root: Path) -> str:
    """Returns a file's name relative to `root`, the same on every machine.

    Bytes that are not UTF-8 are escaped, so that the name can be hashed and written like any other.
    """
    return os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def slug(text: str) -> str:
    """Returns a name for folders and metrics."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "text"
