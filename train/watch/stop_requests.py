"""Signals that ask a run to stop, agreed on by all processes."""

import contextlib
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

_PATIENCE = 2.0  # seconds in which a second SIGINT may end in the usual way


class StopRequests:
    """True once SIGTERM or SIGINT has come: the loop ends its step, saves and returns. A second SIGINT interrupts, and
    ends the process even where its main thread waits for a device, a disk or a compiler and sees no signal.

    Of several processes all stop after the same step: jax's preemption service, whose C++ handler of SIGTERM stays,
    tells all of a signal to one and chooses a step that none has reached. To ask costs no communication.
    """

    def __init__(self):
        self._several, self._seen, self._agreed = jax.process_count() > 1, [], False

    def __bool__(self) -> bool:
        return self._agreed if self._several else bool(self._seen)

    def ask(self, step: int) -> None:
        """After every step."""
        if self._several and not self._agreed:
            self._agreed = multihost_utils.reached_preemption_sync_point(step)

    def _note(self, number, _) -> None:
        if self._seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._seen.append(number)
        if self._several:
            signal.raise_signal(signal.SIGTERM)

    def _listen(self, pipe: int) -> None:
        """A thread that hears of signals at once; Python's handlers wait for the main thread."""
        heard = 0
        while (number := os.read(pipe, 1)) != b"\0":
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            heard += 1
            if heard == 1:
                name = signal.Signals(number[0]).name
                print(f"{name}: stops after this step and saves; Ctrl-C again: at once", file=sys.stderr, flush=True)
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
        with contextlib.suppress(OSError):  # full of signals, of which one was the last word
            os.write(self._end, b"\0")
        os.close(self._end)
        for number, handler in self._before.items():
            signal.signal(number, handler)
