"""The manifest of a checkpoint: sizes and hashes of its files. It is written last and compared before a read.

    STEP/manifest.json   {"files": {"model/d/0f3a": {"size": bytes, "hashes": [SHA-256 of each chunk]}, ...}}

Orbax reads a file with a flipped bit without an error and restores wrong weights, and it accepts an empty folder as a
step. The manifest is written into Orbax's temporary folder before the rename, so a step without one is incomplete.

Chunks are hashed in threads, which run in parallel because hashlib releases the GIL. With several processes, each
compares a share of the chunks.
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
# Orbax writes these files during the rename, after the manifest. Nothing that is restored depends on them.
_STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 1 << 24
_SAMPLED = 16  # 'sampled' reads every 16th chunk, and the first and the last one of each file


class _Chunk(NamedTuple):
    path: str
    number: int


class _File(NamedTuple):
    size: int
    hashes: list[str]  # SHA-256 of each chunk


def write(folder: Path) -> None:
    """Writes the manifest of all files below `folder` into it, atomically. It is on disk when this returns."""
    sizes = _sizes(folder)
    chunks = [_Chunk(path, number) for path, size in sizes.items() for number in range(_chunks(size))]
    entries: dict[str, _File] = {path: _File(size, []) for path, size in sizes.items()}
    for chunk, found in zip(chunks, _hashes(folder, chunks), strict=True):
        entries[chunk.path].hashes.append(found)
    files.replace(folder / NAME, json.dumps({"files": {path: entry._asdict() for path, entry in entries.items()}}))


def problems(folder: Path, level: str = "full", share: tuple[int, int] = (0, 1)) -> list[str]:
    """Returns the problems found in the files of a step, one line each; [] if they are as they were written.

    Args:
      folder: of the step.
      level: 'full' compares all bytes. 'sampled' compares names, sizes and the bytes of some chunks. 'sizes' compares
        names and sizes. 'off' checks only that there is a manifest, so that an empty folder does not pass.
      share: (index, count): this process compares every count-th chunk, starting at index.

    Raises:
      OSError: a file exists but cannot be read (permissions, a network disk), so it is unknown whether it is damaged.
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
    """Returns the number of bytes of all files below a folder."""
    return sum(_sizes(folder).values())


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the sizes of all files below a folder by path, without the manifest and files written after it."""
    found = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if not path.is_dir()
    }
    return {path: found[path] for path in sorted(found) if path not in (NAME, *_STAMPS)}


def _chunks(size: int) -> int:
    return max(1, -(-size // _CHUNK))


def _hashes(folder: Path, chunks: list[_Chunk]):
    """Yields the hash of each chunk, in order."""

    def one(chunk: _Chunk) -> str:
        with (folder / chunk.path).open("rb") as file:
            file.seek(chunk.number * _CHUNK)
            return hashlib.sha256(file.read(_CHUNK)).hexdigest()

    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(one, chunks)
