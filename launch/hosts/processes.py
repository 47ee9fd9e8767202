"""What becomes of all processes of a run when one of them ends, and who speaks. launch/hosts/distributed.py joins them.

Process 0 alone writes to stdout; errors and logs go to stderr from every process and say which one speaks, on which
host.

    lost     jax counts a process as lost that has sent no heartbeat for a while. A thread in each of the others asks
             who is alive, and ends its process with a line that names the lost one.
    failed   who ends with an error says so under the key `end` of jax's coordination service, and the others end too.
    done     process 0, which writes the report, sets the same key; the others wait for it.

One lost process must not bring jax's own abort, a page of C++; jax_enable_recoverability keeps it off. Nothing here
recovers: the same command continues the run from its last checkpoint. The service lives in process 0; without it jax
does abort, and a child process (launch/hosts/lifeline.py) says why. Of a process 0 that hangs, jax's message alone
tells.
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
    """jax's client of the coordination service, by which processes find each other.

    Raises:
      RuntimeError: this process is none of several.
    """
    if global_state.client is None:
        raise RuntimeError("this process has not joined others")
    return global_state.client


def coordinator() -> str:
    """The host at which process 0 is reached."""
    return (global_state.coordinator_address or "").rpartition(":")[0].strip("[]")


def host(process: int) -> str:
    """The name of the host of a process."""
    try:
        return client().key_value_try_get(f"host/{process}")
    except jax.errors.JaxRuntimeError:
        return "an unknown host"


def end(text: str) -> None:
    """End the process with these last words, whatever its threads wait for."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


class Group:
    """This process among the others, from when they have found each other to the end.

    What runs beside the main thread, which ends in `finish` or `fail`:

        process 0                                          each other process
          watcher   who lives, is there an `end`?   <->      watcher    the same; ends its process, `_stop`
          acceptor  holds a connection to each      <--      lifeline   a child; speaks when that breaks

    How it ends, as process 1 sees it:

        all is done     process 0 sets end=done in `finish`, where 1 waits for it; 1 leaves, then 0
        1 fails         `fail` says why and sets `end`; the watchers of the others read it
        2 fails         the watcher reads `end`: `_stop`
        2 is lost       the watcher misses it among those that live: `_stop`
        0 is lost       jax aborts this process from C++; its lifeline says why

    Whoever speaks last words holds `_last_words` and never gives it back, so that each process has one reason.
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
        """From now on logs say who speaks, and stdout is process 0's alone."""
        self._speaker = f"process {self._index} of {self._count} on {socket.gethostname()}"
        logging.get_absl_handler().setFormatter(_Speaking(self._speaker))
        if self._index:
            sys.stdout.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:
            print(f"{self._count} processes, coordinated by this one on {self._coordinator}")

    def _watch(self) -> None:
        """The watcher, until the run is done or this process leaves; that of process 0, by which the others learn who
        lives, until they have left."""
        everyone = list(range(self._count))
        while not (self._leaving.is_set() and self._index):
            try:
                # Returns when all that live have asked: who left or was lost no longer counts.
                alive = self._client.get_live_nodes(everyone)
                end = self._ended()
            except jax.errors.JaxRuntimeError:
                return  # process 0 is gone
            if self._leaving.is_set():
                if len(alive) == 1:  # process 0, after all others
                    return
            elif end == _DONE:
                return
            else:
                self._stop_where(end, [i for i in everyone if i not in alive])
                self._leaving.wait(self._interval)

    def _stop_where(self, end: str, lost: list[int]) -> None:
        """End this process if another has failed, which is what `end` says, or is lost."""
        if end:
            self._stop(end)
        if lost:
            names = ", ".join(f"process {i} on {host(i)}" for i in lost)
            self._stop(f"lost {names}: no heartbeat for {self._timeout} s (--heartbeat_timeout)")

    def _accept(self) -> None:
        """Process 0's side of the connections that carry nothing."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as server:
            self._client.key_value_set("port", str(server.getsockname()[1]))
            held = []
            while True:
                held.append(server.accept())

    def _hold(self) -> None:
        """Start the other side, which says that process 0 is lost. jax ends this process then."""
        port = self._client.blocking_key_value_get("port", _DAY)
        words = self._spoken(f"error: lost process 0 on {self._coordinator}, which coordinates all; {_CONTINUE}")
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("lifeline.py"))]
        command = [*program, coordinator(), port, words]
        self._lifeline = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self._lifeline.stdin is not None  # a pipe
        self._farewell = self._lifeline.stdin

    def _ended(self) -> str:
        """What stands under `end`: '' while the run goes on, done, or who failed and why."""
        try:
            return self._client.key_value_try_get("end")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return ""
            raise

    def _stop(self, why: str) -> None:
        """End this process, whatever its other threads wait for."""
        self._last_words.acquire()
        self._say(f"error: {why}; {_CONTINUE}")
        self._part()
        if self._index == 0:
            time.sleep(2 * self._interval)  # until the others have noticed too
        else:
            threading.Timer(1, os._exit, (1,)).start()  # where process 0 is gone, the next line does not return
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.shutdown()  # so that nobody waits for this process
        os._exit(1)

    def _say(self, text: str) -> None:
        sys.stdout.flush()
        print(self._spoken(text), file=sys.stderr, flush=True)

    def _spoken(self, text: str) -> str:
        return f"[{self._speaker}] {text}"

    def _part(self) -> None:
        """From now on the end of process 0 is none to speak of."""
        if self._index:
            with contextlib.suppress(OSError):
                self._farewell.write(b".")
                self._farewell.flush()

    def fail(self, error: BaseException) -> None:
        """Say what went wrong here, to the others too, and end."""
        said = runtime.words(error)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error.__cause__ or error, jax.errors.JaxRuntimeError):
            # A computation, or a checkpoint, that others had a part in: perhaps one of them is lost.
            self._say(f"{reason[:300]}\nwaiting whether another process is lost")
            self._watcher.join(self._timeout + 2 * self._interval)
        self._last_words.acquire()
        self._say(f"error: {said}" if said else "".join(traceback.format_exception(error)))
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first, or all is lost
            self._client.key_value_set("end", f"{self._speaker} failed: {reason}")
        threading.Timer(self._timeout + 5, os._exit, (1,)).start()  # whatever the next line waits for
        self._leave()
        os._exit(1)

    def finish(self) -> None:
        """The run is done: wait until process 0 says so, and leave."""
        if self._index == 0:
            self._client.key_value_set("end", _DONE)
        elif (end := self._client.blocking_key_value_get("end", _DAY)) != _DONE:
            self._stop(end)
        self._leave()

    def _leave(self) -> None:
        """Process 0 last: the service of all is in it."""
        self._leaving.set()
        self._part()
        if self._index == 0:
            self._watcher.join(self._timeout + 2 * self._interval)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()


class _Speaking(logging.PythonFormatter):
    """absl's lines, and who says them."""

    def __init__(self, speaker: str):
        super().__init__()
        self._speaker = speaker

    def format(self, record) -> str:
        return f"[{self._speaker}] {super().format(record)}"
