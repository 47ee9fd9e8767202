"""Runs stages of preparation once, safely against kills.

A stage is a folder named by a hash of everything it depends on. It is written under a temporary name and renamed when
it is complete. So a killed stage never looks finished, finished work is found again, and changed settings get a new
folder and overwrite nothing. A lock lets one process work while others wait.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data import files

_FORMAT = 2  # part of every hash: raise it when a stage writes different files for the same inputs
_MANIFEST = "manifest.json"


def run(
    parent: Path, label: str, inputs: Any, make: Callable[[Path], dict], log: Callable[[str], None]
) -> tuple[Path, dict]:
    """Returns the folder and the manifest of a stage, after running it if it isn't done yet.

    Args:
      parent: the folder of all stages of its kind.
      label: the start of the folder's name.
      inputs: JSON of everything that the result depends on.
      make: writes the files into a folder and returns the manifest.
      log: gets a line when the stage runs.
    """
    folder = place(parent, label, inputs)
    done = manifest(folder)
    if done is not None:
        return folder, done
    if folder.exists():
        aside = next(path for n in itertools.count(1) if not (path := parent / f"{folder.name}.damaged.{n}").exists())
        folder.rename(aside)
        log(f"{folder} is damaged (its {_MANIFEST}): it was set aside as {aside.name}, and is written again")
    partial = parent / f"{folder.name}.partial"
    if partial.exists():  # left over from a killed run
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    log(f"writing {folder}")
    done = make(partial) | {"inputs": inputs}
    files.replace(partial / _MANIFEST, json.dumps(done, indent=1))
    partial.rename(folder)
    return folder, done


def place(parent: Path, label: str, inputs: Any) -> Path:
    """Returns the folder of a stage, done or not."""
    return parent / f"{label}-{digest([_FORMAT, inputs])[:12]}"


def manifest(folder: Path) -> dict | None:
    """Returns the manifest of a finished stage, or None if `folder` is not one or is damaged."""
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and "inputs" in found else None


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def lock(root: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process works in `root`, and keeps others out.

    Raises:
      OSError: the file system has no locks.
    """
    with (root / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process is preparing {root}: waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, and so does a kill


def storage_problem(error: Exception) -> str | None:
    """Returns the system's message for a disk that is full or not writable, or None for any other error."""
    # ArrayRecord puts the system's message into the text of a RuntimeError.
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    return None
