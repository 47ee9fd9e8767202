"""Lines on stderr that say how far a long program is."""

import sys
import time

_SECONDS = 5.0  # between two lines


class Progress:
    """Prints at most one line in a few seconds.

    Args:
      what: what is counted ('prompts').
      total: how many there are.
      done: how many were done before this process.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self._what, self._total, self._done, self._before = what, total, done, done
        self._began = self._last = time.monotonic()

    def add(self, count: int) -> None:
        """Counts some more."""
        self._done += count
        now = time.monotonic()
        if now - self._last < _SECONDS and self._done < self._total:
            return
        self._last = now
        rate = (self._done - self._before) / max(now - self._began, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        print(
            f"{self._done:,} of {self._total:,} {self._what}, {rate:.1f} a second, {left:.0f} seconds left",
            file=sys.stderr,
            flush=True,
        )
