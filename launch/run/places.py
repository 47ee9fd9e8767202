"""Where a workdir may be: which paths are refused before anything is made, and why."""

import os
import re
from pathlib import Path

from launch.program.checking import ConfigError

# What in a path leads elsewhere than it says.
_MISTAKEN = {
    "looks like the address of a bucket; a workdir is a folder: mount the bucket, and name that": "[^/]+:(?=/)",
    "was not expanded by the shell; write $HOME instead": "(?<=/)~(?=/|$)",
    "is a backslash, which Orbax takes for a slash; use another name": r"\\",
    "is not UTF-8; use another name": "[\ud800-\udfff]",
    "is a null byte; use another name": "\0",
}


def named(text: str) -> Path:
    """The folder that --workdir names."""
    if not text:
        raise ConfigError("--workdir is empty; name a folder (a variable in the command may not be set)")
    return Path(text).absolute()


def check(workdir: Path) -> None:
    """
    Raises:
      ConfigError: the folder can't be made or written, or Orbax would write to another place.
    """
    for what, wrong in _MISTAKEN.items():
        if found := re.search(wrong, str(workdir)):
            raise ConfigError(f"--workdir {str(workdir)!r}: {found[0]!r} {what}")
    try:
        for folder in (workdir, workdir / "checkpoints"):
            there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
            if not there.is_dir():
                kind = "a file" if there.exists() else "a link to nothing"
                raise ConfigError(f"{there} is {kind}, and no folder: use another --workdir, or move it away")
        there = next(path for path in (workdir, *workdir.parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"--workdir {workdir}: {error.strerror}; use another one") from error
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there} may not be written: change its permissions, or use another --workdir")
