"""Reads plain, gzip and zstd files alike, and never takes a file that is cut off for a whole one."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from data.batch import DataError

SUFFIXES = (".gz", ".zst")


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Opens `file` for reading bytes; what goes wrong while it is read becomes a DataError that names it."""
    try:
        with file.open("rb") as raw:
            if file.suffix == ".gz":
                yield gzip.GzipFile(fileobj=raw)
            elif file.suffix == ".zst":
                yield io.BufferedReader(_ZstdReader(raw))
            else:
                yield raw
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{file} can't be read: {error}. Mend it, or take it out of the data source.") from error


class _ZstdReader(io.RawIOBase):
    """zstandard's own reader ends without a word where the file is cut off; this one raises EOFError, as gzip does."""

    def __init__(self, raw: BinaryIO):
        self._chunks = _zstd_chunks(raw)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _zstd_chunks(raw: BinaryIO) -> Iterator[bytes]:
    frame = None  # a file is any number of frames, one after another
    while compressed := raw.read(1 << 20):
        while compressed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(compressed)
            compressed = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the file ends within a zstd frame")
