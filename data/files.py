"""Writes files atomically, and recognizes Git LFS pointers, which stand in for files that were not downloaded."""

import contextlib
import os
from pathlib import Path

from data.batch import DataError


def replace(path: Path, text: str) -> None:
    """Replaces a file atomically; the new content is on disk when this returns.

    A reader sees either the old file or the whole new one, also after a kill or on a full disk. Half a surrogate pair,
    which a text has when it was cut between bytes, becomes '?'.

    Raises:
      OSError: the file can't be written; the old one is still there.
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
    """Raises a DataError if a file is a Git LFS pointer, the text that stands in for a file not downloaded yet.

    Args:
      path: the file.
      start: its first bytes, if the caller has read them; None: they are read here.
    """
    if start is None:
        with path.open("rb") as stream:
            start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, and the file was not downloaded; run: git lfs pull.")
