"""Runs Python code that a model wrote, in a process that can do no harm.

    result = sandbox.run("def double(x):\n    return 2 * x", "assert double(4) == 8")
    result.passed  # both parts ran to their last line, and the exit status is 0

The process has no network, sees only the system's /usr and Python, which it can't change, and an empty folder, knows no
environment variable of ours, has no rights, and has limits of time, memory, processes, files and output (`Limits`).
Bubblewrap (`bwrap`, the Debian package bubblewrap) makes it from the kernel's namespaces. When its first process ends,
all others end too. Where a machine can't give this, `run` raises an error: code never runs with less protection.

What it does not give:

- It shares the kernel with us, so it is no protection from a bug of the kernel, as a virtual machine would be.
- `exit(0)`, `os._exit(0)` or text on stdout is not a pass. But code and tests share one process, so code that sets out
  to fool the tests can: with an object that equals everything, by changing builtins, by searching for the descriptors
  of inside_sandbox.py. Read some of the answers with the highest reward.
- Memory is limited per process. Several can use more together; if the machine runs out of memory, the kernel ends them
  first (oom_score_adj).
- Bubblewrap before 0.7 (Ubuntu 22.04) limits each file in memory, but not all files together.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from train.align import walls
from train.align.walls import SandboxError

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # sets have the same order in every call, so that the same code gets the same reward
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start a thread for each core, and each takes address space
    "OMP_NUM_THREADS": "1",
}
# Each call of a root process runs as another user, because the kernel counts processes per user: a fork bomb must not
# use up the processes of the call beside it. systemd's documentation of user IDs says that nobody uses these.
_UIDS = range(60578, 61184)
_calls = itertools.count(os.getpid())
# The end of a killed sandbox takes milliseconds; if it takes longer than this, the caller does not wait for it.
_PATIENCE = 5.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the code may use. The defaults suit unit tests."""

    seconds: float = 10.0  # of wall time; each process may use as much CPU time
    memory: int = 1 << 30  # bytes of address space of each process
    processes: int = 64  # threads count too
    file: int = 32 << 20  # bytes of each file
    folder: int = 64 << 20  # bytes of all files in the working folder, /tmp, and as many in /dev/shm; both are memory
    output: int = 64 << 10  # bytes of stdout and of stderr that are kept; the rest is read and dropped


DEFAULTS = Limits()


class Result(NamedTuple):
    """How a run ended."""

    status: str  # 'ok': exit status 0; 'failed': another one; 'timeout': out of time; 'killed': by a signal
    code: int  # the exit status; minus the signal's number if a signal ended it
    stdout: str
    stderr: str
    seconds: float  # wall time
    ended: bool  # whether every part ran to its last line

    @property
    def passed(self) -> bool:
        """Whether every part ran to its last line, and the exit status is 0."""
        return self.status == "ok" and self.ended


def run(
    *parts: str,
    stdin: str = "",
    limits: Limits = DEFAULTS,
    packages: Sequence[str] = (),
    name: str = "__main__",
) -> Result:
    """Runs Python code. Any thread can call it, and several at a time.

    Args:
      parts: code texts, run one after another in one module. Each is compiled by itself, so an open quote in
        one does not swallow the next; later ones see all names of earlier ones.
      stdin: what the code reads from its standard input.
      limits: what the code may use.
      packages: installed packages that the code may import besides the standard library, with all packages that they
        need, such as ("numpy",).
      name: the module's __name__. With another one, what stands below `if __name__ == "__main__"` does not run.

    Raises:
      SandboxError: this machine can't give the sandbox, or a package is not installed.
    """
    if why := why_not():
        raise SandboxError(why)
    return _run(parts, stdin, limits, packages, name)


_works = False  # whether a trial has shown it


def why_not() -> str:
    """Returns why this machine can't give the sandbox, and what to do; '' if it can.

    Each process tries it once, or again after a trial that failed, which a busy machine may have slowed down.
    """
    global _works
    if _works:
        return ""
    if sys.platform != "linux":
        return f"the sandbox for code needs Linux, and this is {sys.platform}"
    if not shutil.which("bwrap"):
        return "the sandbox for code needs bubblewrap, and there is no bwrap on the PATH: apt-get install bubblewrap"
    try:
        result = _run(("print(6 * 7)",), "", Limits(seconds=60), (), "__main__")
    except SandboxError as error:
        return str(error)
    if not result.passed or result.stdout != "42\n":
        return f"the sandbox for code does not work here: a trial ended with {result.status} {result.stderr[-300:]!r}"
    _works = True
    return ""


def _run(parts: Sequence[str], stdin: str, limits: Limits, packages: Sequence[str], name: str) -> Result:
    cpu = math.ceil(limits.seconds)
    rlimits = {
        "CPU": (cpu, cpu + 1),  # SIGXCPU, which says why; then SIGKILL, if the code ignores that
        "AS": (limits.memory, limits.memory),
        "FSIZE": (limits.file, limits.file),
        "NPROC": (limits.processes, limits.processes),
        "NOFILE": (128, 128),
        "CORE": (0, 0),
    }
    uid = _UIDS[next(_calls) % len(_UIDS)] if os.geteuid() == 0 else None
    path = ["/packages"] if packages else []
    job = {"parts": parts, "name": name, "packages": path, "uid": uid, "limits": rlimits}
    key = secrets.token_hex(16)
    words = [*walls.around(limits.folder), *walls.packages(packages), "--remount-ro", "/", "--chdir", "/tmp", "--"]
    words += [str(walls.PYTHON), "-S", "-s", "-P", "-X", "utf8", f"/{walls.INSIDE.name}"]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_in_memory(text)) for text in (json.dumps(job), key, stdin)]
        answers, answer = os.pipe()
        stack.callback(os.close, answers)
        inherited = (files[0].fileno(), files[1].fileno(), answer)
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                [*words, *map(str, inherited)],
                stdin=files[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=inherited,
                env=_ENVIRONMENT,
            )
        except OSError as error:
            raise SandboxError(f"the sandbox for code does not start: {error}") from error
        finally:
            os.close(answer)
        with process:
            try:
                (stdout, stderr, said), late = _read(process, answers, start + limits.seconds, limits.output)
            finally:
                process.kill()  # without effect if it has ended; an interrupted call leaves nothing behind
    if not said.startswith("started "):
        after = f"within {limits.seconds:g} s" if late else f"(exit status {process.returncode})"
        raise SandboxError(
            f"the sandbox for code does not start {after}: {stderr.strip()[-300:]}{walls.advice(stderr)}"
        )
    status, code = ("timeout", -signal.SIGKILL) if late else _ending(process.returncode)
    return Result(status, code, stdout, stderr, time.monotonic() - start, said == f"started {key}")


def _read(process, answers: int, deadline: float, keep: int) -> tuple[list[str], bool]:
    """Reads until all pipes close and the process has ended. Returns (stdout, stderr, answers) and whether it was late.

    Args:
      deadline: the time (time.monotonic) at which the process is killed.
      keep: bytes of each pipe that are kept.
    """
    texts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), answers: bytearray()}
    dropped, late = dict.fromkeys(texts, 0), False
    with selectors.DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            if time.monotonic() >= deadline:
                if late:
                    break
                late, deadline = True, deadline + _PATIENCE
                process.kill()
            for found, _ in selector.select(max(0.0, deadline - time.monotonic())):
                data, kept = os.read(found.fd, 1 << 16), texts[found.fd]
                if not data:
                    selector.unregister(found.fd)
                fits = data[: keep - len(kept)]
                kept += fits
                dropped[found.fd] += len(data) - len(fits)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))  # code may close its pipes and go on
    except subprocess.TimeoutExpired:
        late = True
    more = {pipe: f"\n({count} more bytes)" if count else "" for pipe, count in dropped.items()}
    return [text.decode(errors="replace") + more[pipe] for pipe, text in texts.items()], late


def _ending(status: int) -> tuple[str, int]:
    """Returns (status, code) of a Result for the exit status of bwrap, which is 128 + N after a signal N."""
    if status < 0 or status - 128 in set(signal.Signals):
        number = -status if status < 0 else status - 128
        return "timeout" if number == signal.SIGXCPU else "killed", -number
    return "failed" if status else "ok", status


def _in_memory(text: str) -> BinaryIO:
    """Returns a file without a path, at its start."""
    file = os.fdopen(os.memfd_create("sandbox"), "w+b")
    file.write(text.encode(errors="surrogatepass"))
    file.seek(0)
    return file
