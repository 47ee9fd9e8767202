"""Detects whether files have changed since they were read, without reading all of them again.

A change shows in a file's size, its modification time, or a hash of its content. The hash catches changes that keep
size and time (after `rsync --times`, or in a restored backup). It covers files of up to 1 MiB completely, and of larger
files 16 blocks of 64 KiB, spread evenly from the first byte to the last. So the only undetected change is one of a
larger file between those blocks that keeps size and time. A start reads at most 4 GiB: of more than 4,096 files, only
that many are hashed, spread evenly.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from data.batch import DataError

_BLOCKS, _BLOCK_BYTES = 16, 1 << 16
_HASHED_FILES = 1 << 12


def of_files(files: Sequence[Path]) -> list[list]:
    """Returns the path, size, modification time and hash of each file, as JSON.

    Raises:
      DataError: a file can no longer be read; the message names it.
    """
    every = -(-len(files) // _HASHED_FILES) or 1
    return [_of_file(file, hashed=i % every == 0) for i, file in enumerate(files)]


def _of_file(file: Path, hashed: bool) -> list:
    try:
        stat = file.stat()
        facts = [os.path.abspath(file), stat.st_size, stat.st_mtime_ns]
        return [*facts, _sampled(file, stat.st_size)] if hashed else facts
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}. Restore it, or leave it out.") from None


def _sampled(file: Path, size: int) -> str:
    content = hashlib.blake2b(digest_size=8)
    with file.open("rb") as stream:
        if size <= _BLOCKS * _BLOCK_BYTES:
            content.update(stream.read())
        else:
            for block in range(_BLOCKS):
                stream.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                content.update(stream.read(_BLOCK_BYTES))
    return content.hexdigest()
