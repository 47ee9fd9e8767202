"""One run at a time in a workdir: two would write over each other's metrics and delete each other's checkpoints.

The lock is the system's own (flock), on WORKDIR/.run.lock: it ends with the process that holds it, however that ends,
so a kill leaves nothing to clear away. On an NFS mount Linux asks the server for it, so it holds for other hosts too;
the lock of a host that is gone ends there with its lease, in about 90 seconds. Of several processes of one run, process
0 holds it. What the file says is only for the message.

Left out: file systems whose locks do not reach other hosts (NFS mounted with nolock, some FUSE mounts). There the hosts
of two runs can't know of each other.
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

_NAME = ".run.lock"  # another file than that of data/stage.py, whose folder may be the workdir
_SECONDS = 3.0  # in which a process that was just killed gives its lock back
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def alone(workdir: Path, what: str) -> Iterator[None]:
    """While the block runs, no other process runs one for this folder. The folder is made if it is not there; if
    nothing else was put into it, it is removed again.

    Args:
      what: what this process does there ('trains'), for the message that another process shows.

    Raises:
      ConfigError: another process holds the lock; says which one, where and since when.
    """
    new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    path = workdir / _NAME
    descriptor = None
    try:
        descriptor = _locked(path, what)
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays, and so do those around it
            if descriptor is not None and [found.name for found in workdir.iterdir()] == [_NAME]:
                path.unlink()
            for folder in new:
                folder.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path, what: str) -> int:
    """The descriptor that holds the lock, until it is closed."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # another process may have taken it away
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(
                f"{path} can't be made or opened ({error.strerror}): remove it if it is of another user, or use "
                "another --workdir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                words = f"note: the file system of {path.parent} has no locks ({error.strerror})"
                print(f"{words}: nothing keeps a second run out of this folder", file=sys.stderr, flush=True)
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
        os.close(descriptor)  # who held it has taken the file away


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int, what: str) -> None:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    holder = {"what": what, "process": os.getpid(), "host": socket.gethostname(), "since": now}
    with contextlib.suppress(OSError):  # of a disk that is full: the lock holds without it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _held_by(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = "process {process} on {host} {what} in {folder} since {since}".format(folder=path.parent, **holder)
    except (OSError, ValueError, KeyError, TypeError):
        who = f"another process is at work in {path.parent}, which has not said who it is"
    return (
        f"{who}; two at once would spoil each other's files. Wait for it, stop it, or use another --workdir (the lock "
        "ends with that process; if its host is gone, the file server ends it in about 90 seconds)"
    )
