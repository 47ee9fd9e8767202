"""The parent's side of a worker process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.align.rewards.reward import RewardError, Settings

_ROOT = Path(__file__).resolve().parents[3]  # the checkout
START_SECONDS = 300.0  # time to load the functions; a user's file may import large packages


class Process:
    """A worker process that calls reward functions, one call at a time (worker.py).

    It leads a session of its own, so that Ctrl-C in the terminal does not reach it, and `end` also ends what its
    functions have started. It ends by itself when its parent closes the socket, or dies.

    Attributes:
      task: what the caller has it working on, or None.
      deadline: the time (time.monotonic) at which its answer is late.
      ready: whether it has loaded its functions.
    """

    def __init__(self, specs: Sequence[str], seconds: float, settings: Settings):
        ours, theirs = socket.socketpair()
        path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file of the user's folder must not stand in for one of ours or of Python's.
                [sys.executable, "-P", "-m", "train.align.rewards.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                # A file that imports jax must not take the accelerator from the run.
                env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(path)},
            )
        self._socket, self._seconds, self._received = ours, seconds, b""
        self.task: Any = None
        self.ready = False
        self.send({"specs": specs, "seconds": seconds, "settings": settings._asdict()})
        self.deadline = time.monotonic() + START_SECONDS

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any]) -> bool:
        """Sends a call and sets the deadline. Returns False if the process has ended or hangs.

        Raises:
          RewardError: the message has a value that JSON has not.
        """
        try:
            line = json.dumps(message).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise RewardError(f"a record has a value that JSON has not: {error}") from error
        self._socket.settimeout(self._seconds)
        self.deadline = time.monotonic() + self._seconds
        try:
            self._socket.sendall(line)
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """Reads what has arrived. Returns an answer, or None if it is not complete.

        Raises:
          EOFError: the process has ended.
        """
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise EOFError
        self._received += data
        line, end, rest = self._received.partition(b"\n")
        if not end:
            return None
        self._received = rest
        return json.loads(line)

    def end(self, patience: float = 0.0) -> str:
        """Ends the process and all that its functions have started, and returns how it ended, as text.

        Args:
          patience: seconds that it gets to end by itself.
        """
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        if status >= 0:
            return f"exit status {status}"
        return f"signal {-status}, {signal.strsignal(-status)}"
