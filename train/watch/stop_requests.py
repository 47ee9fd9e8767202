"""Handles signals that ask a run to stop. All processes agree on the step after which they stop."""

import contextlib
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

_PATIENCE = 2.0  # seconds that Python gets to handle a second SIGINT, before the process is ended from a thread


class StopRequests:
    """True once SIGTERM or SIGINT has arrived. The loop then ends its step, saves and returns.

    A second SIGINT interrupts at once. It ends the process even if its main thread waits for a device, a disk or a
    compiler, where Python's signal handlers do not run.

    Several processes all stop after the same step: jax's preemption service, whose C++ handler of SIGTERM stays
    installed, tells all processes of a signal to one, and chooses a step that none has reached. `ask` costs no
    communication.
    """

    def __init__(self):
        self._several, self._seen, self._agreed = jax.process_count() > 1, [], False

    def __bool__(self) -> bool:
        return self._agreed if self._several else bool(self._seen)

    def ask(self, step: int) -> None:
        """Updates the answer. Call it after every step."""
        if self._several and not self._agreed:
            self._agreed = multihost_utils.reached_preemption_sync_point(step)

    def _note(self, number, _) -> None:
        if self._seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._seen.append(number)
        if self._several:
            signal.raise_signal(signal.SIGTERM)

    def _listen(self, pipe: int) -> None:
        """Runs in a thread that learns of signals at once, while Python's handlers wait for the main thread."""
        heard = 0
        while (number := os.read(pipe, 1)) != b"\0":
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            heard += 1
            if heard == 1:
                name = signal.Signals(number[0]).name
                words = f"{name}: the run saves and stops after this step; Ctrl-C again stops it at once"
                print(words, file=sys.stderr, flush=True)
            elif number[0] == signal.SIGINT and not self._left.wait(_PATIENCE):
                os._exit(128 + signal.SIGINT)
        os.close(pipe)

    def __enter__(self):
        numbers = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        self._left = threading.Event()
        pipe, self._end = os.pipe()
        os.set_blocking(self._end, False)
        self._wakeup = signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(pipe,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *_):
        self._left.set()
        signal.set_wakeup_fd(self._wakeup)
        with contextlib.suppress(OSError):  # the pipe may be full of signals
            os.write(self._end, b"\0")
        os.close(self._end)
        for number, handler in self._before.items():
            signal.signal(number, handler)
