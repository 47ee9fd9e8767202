"""Stages of preparation that are done once and survive a kill.

A stage is a folder named by a hash of all it depends on. It is written under another name and renamed when it is whole,
so what was killed leaves nothing that looks finished, finished work is found again, and changed settings get a folder
of their own and overwrite nothing. A lock lets one process work while others wait.
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

_FORMAT = 2  # part of every hash: raise it when a stage writes something else for the same inputs
_MANIFEST = "manifest.json"


def run(
    parent: Path, label: str, inputs: Any, make: Callable[[Path], dict], log: Callable[[str], None]
) -> tuple[Path, dict]:
    """Returns the folder and the manifest of a stage; calls `make(folder)` for them where it isn't done yet."""
    folder = parent / f"{label}-{digest([_FORMAT, inputs])[:12]}"
    done = manifest(folder)
    if done is not None:
        return folder, done
    if folder.exists():
        aside = next(path for n in itertools.count(1) if not (path := parent / f"{folder.name}.damaged.{n}").exists())
        folder.rename(aside)
        log(f"{folder} is damaged (its {_MANIFEST}): it was set aside as {aside.name}, and is made anew")
    partial = parent / f"{folder.name}.partial"
    if partial.exists():  # what a killed run left
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    log(f"writing {folder}")
    done = make(partial) | {"inputs": inputs}
    files.replace(partial / _MANIFEST, json.dumps(done, indent=1))
    partial.rename(folder)
    return folder, done


def manifest(folder: Path) -> dict | None:
    """What a finished stage says about itself; None where `folder` isn't one, or no longer."""
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and "inputs" in found else None


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def lock(root: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process works in `root`. OSError on a file system that has no locks."""
    with (root / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process is preparing {root}: waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back, and so does a kill


def storage_problem(error: Exception) -> str | None:
    """What the system says of a disk that is full or may not be written; None for any other error."""
    # ArrayRecord reports what the system says in the text of a RuntimeError.
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    return None
