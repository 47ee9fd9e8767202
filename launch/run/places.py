"""Checks the path of a workdir before anything is created there."""

import os
import re
from pathlib import Path

from launch.program.checking import ConfigError

# Parts of a path that would make the run write elsewhere than the user expects: what is wrong, and a pattern for it.
_MISTAKEN = {
    "looks like the address of a bucket, but a workdir is a folder; mount the bucket and name that": "[^/]+:(?=/)",
    "was not expanded by the shell; write $HOME instead": "(?<=/)~(?=/|$)",
    "is a backslash, which Orbax reads as a slash; use another name": r"\\",
    "is not UTF-8; use another name": "[\ud800-\udfff]",
    "is a null byte; use another name": "\0",
}


def named(text: str, flag: str = "--workdir") -> Path:
    """Returns the absolute path of the folder that a flag names.

    Raises:
      ConfigError: the name is empty.
    """
    if not text:
        raise ConfigError(f"{flag} is empty; name a folder (perhaps a shell variable in the command is not set)")
    return Path(text).absolute()


def check(workdir: Path) -> None:
    """Checks that a run or a model can be written to this folder as a workdir.

    Raises:
      ConfigError: the folder can't be created or is not writable, or Orbax would write to another place.
    """
    for what, wrong in _MISTAKEN.items():
        if found := re.search(wrong, str(workdir)):
            raise ConfigError(f"workdir {str(workdir)!r}: {found[0]!r} {what}")
    try:
        for folder in (workdir, workdir / "checkpoints"):
            there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
            if not there.is_dir():
                kind = "a file" if there.exists() else "a broken symbolic link"
                raise ConfigError(f"{there} is {kind}, not a folder: use another workdir, or move it away")
        there = next(path for path in (workdir, *workdir.parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"workdir {workdir}: {error.strerror}; use another one") from error
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there} is not writable: change its permissions, or use another workdir")
