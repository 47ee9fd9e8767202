"""The files of a checkpoint's step, with sizes and hashes: written last, compared before anything is read.

    STEP/manifest.json   {"files": {"model/d/0f3a": {"size": bytes, "hashes": [SHA-256 of each chunk]}, ...}}

Orbax reads a file with a flipped bit without a word and restores other weights, and takes an empty folder for a step.
The manifest is written into the folder that Orbax renames when it is complete, so a step without one is no step.

Chunks are hashed by threads, which hashlib lets run side by side; several processes compare a share each.
"""

import concurrent.futures
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from data import files

NAME = "manifest.json"
LEVELS = ("full", "sampled", "off")
# Written by Orbax in the moment of renaming; nothing that is restored depends on them.
_STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 1 << 24
_SAMPLED = 16  # of so many chunks one is read at the level 'sampled', besides the first and the last of each file


class _Chunk(NamedTuple):
    path: str
    number: int


class _File(NamedTuple):
    size: int
    hashes: list[str]  # of its chunks


def write(folder: Path) -> None:
    """Hash all files below `folder`, and keep that in it: at once or not at all, and on disk when this returns."""
    sizes = _sizes(folder)
    chunks = [_Chunk(path, number) for path, size in sizes.items() for number in range(_chunks(size))]
    entries: dict[str, _File] = {path: _File(size, []) for path, size in sizes.items()}
    for chunk, found in zip(chunks, _hashes(folder, chunks), strict=True):
        entries[chunk.path].hashes.append(found)
    files.replace(folder / NAME, json.dumps({"files": {path: entry._asdict() for path, entry in entries.items()}}))


def problems(folder: Path, level: str = "full", share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with the files of a step, a line each; [] where they are as they were written.

    Args:
      level: 'full': all bytes are compared. 'sampled': names, sizes, and the bytes of some chunks. 'sizes': names and
        sizes. 'off': nothing but that there is a manifest, so that an empty folder is no step.
      share: (number, count) of processes that compare a part of the chunks each.

    Raises:
      OSError: a file is there, but can't be read (permissions, a network disk): nothing is known of it.
    """
    try:
        kept = json.loads((folder / NAME).read_text())["files"]
        entries = {path: _File(int(entry["size"]), list(entry["hashes"])) for path, entry in kept.items()}
        if any(len(entry.hashes) != _chunks(entry.size) for entry in entries.values()):
            raise ValueError("hashes")
    except FileNotFoundError:
        return [f"{NAME} is missing: the step was not written to its end"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{NAME} is damaged ({type(error).__name__})"]
    if level == "off":
        return []
    sizes = _sizes(folder)
    lines = [f"{path} is missing" for path in entries if path not in sizes]
    lines += [f"{path} does not belong to it" for path in sizes if path not in entries]
    whole = {path: entry for path, entry in entries.items() if sizes.get(path) == entry.size}
    lines += [
        f"{path} has {sizes[path]:,} bytes instead of {entry.size:,}"
        for path, entry in entries.items()
        if path in sizes and path not in whole
    ]
    chunks = [
        _Chunk(path, number)
        for path, entry in whole.items()
        for number in range(len(entry.hashes))
        if level == "full" or number in (0, len(entry.hashes) - 1) or number % _SAMPLED == len(path) % _SAMPLED
    ]
    mine = [] if level == "sizes" else chunks[share[0] :: share[1]]
    damaged: dict[str, int] = {}
    for chunk, found in zip(mine, _hashes(folder, mine), strict=True):
        if found != whole[chunk.path].hashes[chunk.number]:
            damaged.setdefault(chunk.path, chunk.number * _CHUNK)
    return lines + [f"{path} has other bytes than were written, from byte {at:,} on" for path, at in damaged.items()]


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(_sizes(folder).values())


def _sizes(folder: Path) -> dict[str, int]:
    """Of all files below, by their path, but of the manifest and what comes after it."""
    found = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if not path.is_dir()
    }
    return {path: found[path] for path in sorted(found) if path not in (NAME, *_STAMPS)}


def _chunks(size: int) -> int:
    return max(1, -(-size // _CHUNK))


def _hashes(folder: Path, chunks: list[_Chunk]):
    """Of each chunk."""

    def one(chunk: _Chunk) -> str:
        with (folder / chunk.path).open("rb") as file:
            file.seek(chunk.number * _CHUNK)
            return hashlib.sha256(file.read(_CHUNK)).hexdigest()

    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(one, chunks)
