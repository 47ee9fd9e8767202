"""Files that are written whole or not at all, and files that stand for others."""

import contextlib
import os
from pathlib import Path

from data.batch import DataError


def replace(path: Path, text: str) -> None:
    """Write a file anew: who reads it, and what a kill or a full disk leaves, is the old one or all of the new one,
    which is on disk when this returns. Half a surrogate pair, as of a text cut by its bytes, becomes '?'.

    Raises:
      OSError: it can't be written; the old one is there.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def refuse_pointer(path: Path, start: bytes | None = None) -> None:
    """DataError where a file is a Git LFS pointer: the text that stands for a file which was not downloaded.

    Args:
      start: its first bytes, where they are known.
    """
    if start is None:
        with path.open("rb") as stream:
            start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, and the file was not downloaded; run: git lfs pull.")
