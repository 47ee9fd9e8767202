"""Signals that ask a run to stop, agreed on by all processes."""

import signal

import jax
from jax.experimental import multihost_utils


class StopRequests:
    """True once SIGTERM or SIGINT has come: the loop ends its step, saves and returns. A second SIGINT interrupts.

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

    def __enter__(self):
        numbers = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
