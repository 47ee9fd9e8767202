"""Reads plain, gzip and zstd files alike, and never mistakes a truncated file for a whole one.

A file may hold several members or frames, one after another. Damage is always an error and never gives a shorter text:
a file that ends too early, a file without any bytes (a truncated download, because even an empty text takes some bytes
in either format), a wrong checksum, and bytes after the end that are neither another member nor, in gzip, zeros.

zstd keeps the last part of the text, the window, in memory. Windows of up to 2 GiB are supported, the largest that
`zstd --long=31 --ultra -22` writes; only a file that needs such a window takes that memory.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from data import files
from data.batch import DataError

SUFFIXES = (".gz", ".zst")
_LARGEST_WINDOW = 1 << 31  # bytes; the most that libzstd supports

Stream = BinaryIO | gzip.GzipFile  # a GzipFile has the methods of a BinaryIO, but does not declare it


def plain_suffix(file: Path) -> str:
    """Returns the suffix of the uncompressed file: '.jsonl' for 'A.JSONL.GZ'."""
    name = file.name.lower()
    packed = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return "." + name.removesuffix(packed).rpartition(".")[2]


@contextmanager
def opened(file: Path) -> Iterator[Stream]:
    """Opens `file` and returns a stream of its uncompressed bytes.

    Raises:
      DataError: the file can't be read or is damaged, also when that happens while the caller reads the stream.
    """
    kind = file.suffix.lower()
    try:
        with file.open("rb") as raw:
            files.refuse_pointer(file, raw.peek(64))
            if kind in SUFFIXES and not raw.peek(1):
                raise EOFError("it has no bytes, but even an empty text has some when it is compressed")
            if kind == ".gz":
                yield gzip.GzipFile(fileobj=raw)
            elif kind == ".zst":
                yield io.BufferedReader(_ZstdReader(raw))
            else:
                yield raw
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        reason, advice = str(error), "Repair it (if it was downloaded, download it again), or leave it out"
        if "too much memory" in reason:
            reason = "its zstd window is larger than 2 GiB"
            advice = "Compress it again with `zstd --long=31` or less, or leave it out"
        raise DataError(f"{file} can't be read: {reason}. {advice}.") from None


class _ZstdReader(io.RawIOBase):
    """Raises an EOFError if the file is truncated, as gzip does; zstandard's own reader silently ends there."""

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
    frame = None  # a file holds any number of frames, one after another
    while compressed := raw.read(1 << 20):
        while compressed:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            yield frame.decompress(compressed)
            compressed = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the file ends within a zstd frame")
