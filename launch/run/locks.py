"""Locks a workdir: two runs in one would overwrite each other's metrics and delete each other's checkpoints.

The lock is the kernel's (flock) on WORKDIR/.run.lock. It ends with the process that holds it, even if that is killed,
so there are no stale locks to remove. On an NFS mount, Linux asks the server for the lock, so other hosts respect it;
if its host is lost, it ends with the lease, after about 90 seconds. In a run of several processes, process 0 holds it.
The content of the file is used only in the error message.

Left out: file systems whose locks do not reach other hosts (NFS mounted with nolock, some FUSE mounts). Runs on two
hosts can't detect each other there.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launch.program.checking import ConfigError

_NAME = ".run.lock"  # not the name that data/stage.py uses: config.data.dir may be the workdir
_SECONDS = 3.0  # how long to wait for the lock of a process that was just killed
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def alone(workdir: Path, what: str) -> Iterator[None]:
    """Holds the lock of a workdir while the block runs.

    The folder is created if it is missing, and removed again if nothing else was written to it.

    Args:
      workdir: the folder.
      what: what this process does there ('trains'), for the error message of other processes.

    Raises:
      ConfigError: another process holds the lock; the message says which one, where, and since when.
    """
    new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    path = workdir / _NAME
    descriptor = None
    try:
        descriptor = _locked(path, what)
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays, and so do its parents
            if descriptor is not None and [found.name for found in workdir.iterdir()] == [_NAME]:
                path.unlink()
            for folder in new:
                folder.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path, what: str) -> int:
    """Returns a file descriptor that holds the lock until it is closed."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # another process may have removed it
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(
                f"{path} can't be created or opened ({error.strerror}): remove it if it belongs to another user, or "
                "use another --workdir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                words = f"note: the file system of {path.parent} has no locks ({error.strerror})"
                print(f"{words}, so a second run in this folder would not be noticed", file=sys.stderr, flush=True)
                return descriptor
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if time.monotonic() > deadline:
                raise ConfigError(_held_by(path)) from None
            time.sleep(0.1)
            continue
        if _is(descriptor, path):
            _sign(descriptor, what)
            return descriptor
        os.close(descriptor)  # its last holder has deleted the file


def _is(descriptor: int, path: Path) -> bool:
    """Returns whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int, what: str) -> None:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    holder = {"what": what, "process": os.getpid(), "host": socket.gethostname(), "since": now}
    with contextlib.suppress(OSError):  # if the disk is full; the lock holds without it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _held_by(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = "process {process} on {host} {what} in {folder} since {since}".format(folder=path.parent, **holder)
    except (OSError, ValueError, KeyError, TypeError):
        who = f"an unknown process is at work in {path.parent}"
    return (
        f"{who}; two at once would overwrite each other's files. Wait for it, stop it, or use another --workdir (the "
        "lock ends with that process; if its host is lost, the file server ends the lock after about 90 seconds)"
    )
