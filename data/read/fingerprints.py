"""Whether files have changed since they were read, without reading all of them again.

A change is noticed where a file's size or its modification time is another one, and, should both be the same (as after
`rsync --times`, or a restored backup), where a hash of its content is: of all of it up to 1 MiB, beyond that of 16
blocks of 64 KiB, spread evenly from its first byte to its last. So what is not noticed is a change of a larger file
between those blocks that leaves size and time as they were. A start reads 4 GiB at the most: of more than 4,096 files
only so many are hashed, spread evenly.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from data.batch import DataError

_BLOCKS, _BLOCK_BYTES = 16, 1 << 16
_HASHED_FILES = 1 << 12


def of_files(files: Sequence[Path]) -> list[list]:
    """Path, size, modification time and hash of each file; JSON.

    Raises:
      DataError: one of them can't be read any more; it is named.
    """
    every = -(-len(files) // _HASHED_FILES) or 1
    return [_of_file(file, hashed=i % every == 0) for i, file in enumerate(files)]


def _of_file(file: Path, hashed: bool) -> list:
    try:
        stat = file.stat()
        facts = [os.path.abspath(file), stat.st_size, stat.st_mtime_ns]
        return [*facts, _sampled(file, stat.st_size)] if hashed else facts
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}. Bring it back, or leave it out.") from None


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
