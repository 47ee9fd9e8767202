"""Reads plain, gzip and zstd files alike, and never takes a file that is cut off for a whole one.

Files of several members or frames, one after another, are read whole. What is damaged is an error, never a shorter
text: a file that ends too early, one of no bytes at all (a download that was cut off: an empty text takes some bytes in
either format), a wrong checksum, and bytes behind the end that are neither a further member nor, of gzip, zeros.

zstd keeps the last part of the text, the window, in memory. Windows of up to 2 GiB are read, the largest that
`zstd --long=31 --ultra -22` makes; the memory for it is taken only where a file asks for it.
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
_LARGEST_WINDOW = 1 << 31  # bytes; libzstd takes no larger one


def plain_suffix(file: Path) -> str:
    """What kind of file it is once it is unpacked: '.jsonl' of 'A.JSONL.GZ'."""
    name = file.name.lower()
    packed = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return "." + name.removesuffix(packed).rpartition(".")[2]


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Opens `file` for reading bytes; what goes wrong while it is read becomes a DataError that names it."""
    kind = file.suffix.lower()
    try:
        with file.open("rb") as raw:
            files.refuse_pointer(file, raw.peek(64))
            if kind in SUFFIXES and not raw.peek(1):
                raise EOFError("it has no bytes, and even an empty text has some when it is compressed")
            if kind == ".gz":
                yield gzip.GzipFile(fileobj=raw)
            elif kind == ".zst":
                yield io.BufferedReader(_ZstdReader(raw))
            else:
                yield raw
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        advice = "Mend it (if it was downloaded, download it again), or leave it out"
        if "too much memory" in str(error):
            error = "its zstd window is larger than 2 GiB"
            advice = "Compress it again with `zstd --long=31` or less, or leave it out"
        raise DataError(f"{file} can't be read: {error}. {advice}.") from None


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
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            yield frame.decompress(compressed)
            compressed = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the file ends within a zstd frame")
