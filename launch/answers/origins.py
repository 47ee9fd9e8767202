"""Says what an output was made from, so that a command that continues it can tell whether anything changed."""

import contextlib
import hashlib
from pathlib import Path

from launch.run.early_stopping import find_step
from launch.run.workdirs import Workdir


def digest(path: Path) -> str:
    """Returns a hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def checkpoint(run: Workdir, wanted: str = "") -> tuple[str, str]:
    """Returns (step, hash of its files) of the checkpoint that --step means, which a run that goes on may change.

    Raises:
      ConfigError: the workdir has no checkpoint.
    """
    with contextlib.closing(run.checkpoints()) as checkpoints:
        step = find_step(checkpoints, wanted)
        manifest = checkpoints.directory / str(step) / "manifest.json"  # it has the hashes of all other files
    return str(step), digest(manifest) if manifest.exists() else ""
