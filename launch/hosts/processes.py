"""Ends all processes of a run when one of them ends, and prints why. launch/hosts/distributed.py connects them.

Only process 0 writes to stdout. Errors and logs of every process go to stderr, with a prefix that names the process and
its host.

    lost     jax considers a process lost if it has sent no heartbeat for a while. A thread in each other process asks
             which ones are alive, and ends its process with a message that names the lost one.
    failed   A process that ends with an error reports it under the key `end` of jax's coordination service, and the
             others end too.
    done     Process 0, which writes the report, sets the same key, and the others wait for it.

By default jax aborts all processes with a page of C++ messages when one is lost; jax_enable_recoverability turns that
off. Nothing here recovers a run: the same command continues it from its last checkpoint. The coordination service runs
in process 0. If process 0 is lost, jax aborts all the same, and a child process (launch/hosts/lifeline.py) prints why.
If process 0 hangs, there is only jax's message.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax._src.distributed import global_state  # the client has no public name; orbax reads it here too

from launch.program import runtime

_DONE = "done"
_CONTINUE = "this process ends with it. The same command continues from the last checkpoint"
_DAY = 24 * 60 * 60 * 1000  # ms


def client() -> Any:
    """Returns jax's client of the coordination service, which is a key-value store that all processes share.

    Raises:
      RuntimeError: this process is not one of several.
    """
    if global_state.client is None:
        raise RuntimeError("this process is not connected to other processes")
    return global_state.client


def coordinator() -> str:
    """Returns the host at which process 0 is reached."""
    return (global_state.coordinator_address or "").rpartition(":")[0].strip("[]")


def host(process: int) -> str:
    """Returns the name of the host that a process runs on."""
    try:
        return client().key_value_try_get(f"host/{process}")
    except jax.errors.JaxRuntimeError:
        return "an unknown host"


def end(text: str) -> None:
    """Prints `text` and ends the process at once, even if threads are blocked."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


class Group:
    """This process as a member of a run, from the moment when all processes are connected until it ends.

    These run beside the main thread, which calls `finish` or `fail` at its end:

        process 0                                            each other process
          watcher   asks who is alive, reads `end`    <->      watcher    the same; ends its process with `_stop`
          acceptor  holds a connection to each other  <--      lifeline   a child process; prints if that breaks

    The possible ends, as process 1 sees them:

        done            process 0 sets end=done in `finish`, where 1 waits for it; 1 leaves, then 0
        1 fails         `fail` prints why and sets `end`, which the watchers of the others read
        2 fails         the watcher reads `end` and calls `_stop`
        2 is lost       the watcher does not find it among the live processes and calls `_stop`
        0 is lost       jax aborts this process from C++; its lifeline prints why

    The thread that prints why the process ends acquires `_last_words` and never releases it, so that each process
    prints one reason.

    Args:
      heartbeat_timeout: seconds without a heartbeat after which jax considers a process lost.
    """

    def __init__(self, heartbeat_timeout: float):
        self._timeout, self._interval = heartbeat_timeout, heartbeat_timeout / 10
        self._client = client()
        self._index, self._count = global_state.process_id, global_state.num_processes
        self._client.key_value_set(f"host/{self._index}", socket.gethostname())
        self._coordinator = self._client.blocking_key_value_get("host/0", _DAY)
        self._introduce()
        self._leaving, self._last_words = threading.Event(), threading.Lock()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        if self._index:
            self._hold()
        else:
            threading.Thread(target=self._accept, daemon=True).start()

    def _introduce(self) -> None:
        """Adds the process and host to log lines, and silences stdout except in process 0."""
        self._prefix = f"process {self._index} of {self._count} on {socket.gethostname()}"
        logging.get_absl_handler().setFormatter(_Prefixed(self._prefix))
        if self._index:
            sys.stdout.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:
            print(f"{self._count} processes; this one, on {self._coordinator}, coordinates them")

    def _watch(self) -> None:
        """Runs the watcher until the run is done or this process leaves.

        The watcher of process 0 runs until the others have left: get_live_nodes returns only when it has asked too.
        """
        everyone = list(range(self._count))
        while not (self._leaving.is_set() and self._index):
            try:
                # This call is a barrier: it returns when all live processes have called it. Processes that left or were
                # lost no longer count.
                alive = self._client.get_live_nodes(everyone)
                end = self._ended()
            except jax.errors.JaxRuntimeError:
                return  # process 0 is gone
            if self._leaving.is_set():
                if len(alive) == 1:  # only process 0 is left
                    return
            elif end == _DONE:
                return
            else:
                self._stop_if(end, [i for i in everyone if i not in alive])
                self._leaving.wait(self._interval)

    def _stop_if(self, end: str, lost: list[int]) -> None:
        """Ends this process if another one failed (`end` is its message) or is lost."""
        if end:
            self._stop(end)
        if lost:
            names = ", ".join(f"process {i} on {host(i)}" for i in lost)
            self._stop(f"lost {names}: no heartbeat for {self._timeout} s (--heartbeat_timeout)")

    def _accept(self) -> None:
        """Accepts the idle connections of the lifelines; runs in process 0."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as server:
            self._client.key_value_set("port", str(server.getsockname()[1]))
            held = []
            while True:
                held.append(server.accept())

    def _hold(self) -> None:
        """Starts the lifeline, which reports that process 0 is lost when jax has aborted this process."""
        port = self._client.blocking_key_value_get("port", _DAY)
        message = self._prefixed(
            f"error: lost process 0 on {self._coordinator}, which coordinates all processes; {_CONTINUE}"
        )
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("lifeline.py"))]
        command = [*program, coordinator(), port, message]
        self._lifeline = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self._lifeline.stdin is not None  # a pipe
        self._farewell = self._lifeline.stdin

    def _ended(self) -> str:
        """Returns the value of `end`: '' during the run, 'done' after it, or which process failed and why."""
        try:
            return self._client.key_value_try_get("end")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return ""
            raise

    def _stop(self, why: str) -> None:
        """Ends this process because of another one, even if its other threads are blocked."""
        self._last_words.acquire()
        self._say(f"error: {why}; {_CONTINUE}")
        self._part()
        if self._index == 0:
            time.sleep(2 * self._interval)  # the others must notice it before the service is gone
        else:
            threading.Timer(1, os._exit, (1,)).start()  # if process 0 is gone, the next line does not return
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.shutdown()  # else the others would wait for this process
        os._exit(1)

    def _say(self, text: str) -> None:
        sys.stdout.flush()
        print(self._prefixed(text), file=sys.stderr, flush=True)

    def _prefixed(self, text: str) -> str:
        return f"[{self._prefix}] {text}"

    def _part(self) -> None:
        """Tells the lifeline that this process ends on purpose; it then prints nothing when process 0 ends."""
        if self._index:
            with contextlib.suppress(OSError):
                self._farewell.write(b".")
                self._farewell.flush()

    def fail(self, error: BaseException) -> None:
        """Prints what went wrong in this process, reports it to the others, and ends the process."""
        message = runtime.words(error)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error.__cause__ or error, jax.errors.JaxRuntimeError):
            # A computation or a checkpoint that all processes take part in failed. Another process may be lost, which
            # is then the reason to print; the watcher finds out.
            self._say(f"{reason[:300]}\nchecking if another process is lost")
            self._watcher.join(self._timeout + 2 * self._interval)
        self._last_words.acquire()
        self._say(f"error: {message}" if message else "".join(traceback.format_exception(error)))
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process failed first, or process 0 is gone
            self._client.key_value_set("end", f"{self._prefix} failed: {reason}")
        threading.Timer(self._timeout + 5, os._exit, (1,)).start()  # in case the next line blocks
        self._leave()
        os._exit(1)

    def finish(self) -> None:
        """Waits until process 0 reports that the run is done, then leaves."""
        if self._index == 0:
            self._client.key_value_set("end", _DONE)
        elif (end := self._client.blocking_key_value_get("end", _DAY)) != _DONE:
            self._stop(end)
        self._leave()

    def _leave(self) -> None:
        """Disconnects this process; process 0 goes last, because the coordination service runs in it."""
        self._leaving.set()
        self._part()
        if self._index == 0:
            self._watcher.join(self._timeout + 2 * self._interval)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()


class _Prefixed(logging.PythonFormatter):
    """Formats absl's log lines with the process and host in front."""

    def __init__(self, prefix: str):
        super().__init__()
        self._prefix = prefix

    def format(self, record) -> str:
        return f"[{self._prefix}] {super().format(record)}"
