"""What a run is doing now and what its time went into, and a watchdog that ends it if that takes far longer than ever
before.

A device, a network or a disk that hangs leaves a process that waits for good: no error comes, and a cluster sees a
process that lives. So each phase has a name and a history. The watchdog, a thread, first says which phase hangs and
shows what every thread waits for, and after a while ends the process, so that the cluster starts it again.
"""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

_KNOWN = 3  # of a phase that has ended less often than this, only `first_seconds` is asked for


class Phases:
    """Of one process, entered by its main thread: `with phases("save"): ...`. Inside another one, its time is its own.
    Between phases there is the one without a name.

    Args:
      now: seconds, in a test others.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self._stack = now, [("", now())]
        self._inner: list[tuple[float, float]] = []  # begin and end of what was compiled in the current phase
        self.longest: dict[str, float] = {}
        self.times: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, behind: Callable[[], bool] = lambda: False):
        """Where `behind()` at its end, it was no waiting: its seconds are those of steps, which went on meanwhile."""
        self._ended()
        self._stack.append((name, self._now()))
        try:
            yield
        finally:
            self._ended("step" if behind() else name)
            self._stack.pop()
            self.times[name] = self.times.get(name, 0) + 1
            self._stack[-1] = (self._stack[-1][0], self._now())

    def _ended(self, counted_as: str | None = None) -> None:
        """A piece of the current phase is over."""
        (name, begin), now = self._stack[-1], self._now()
        compiling = sum(e - b for b, e in self._inner)
        self.longest[name] = max(self.longest.get(name, 0.0), now - begin - compiling)
        self._seconds, self._inner = self._with(counted_as or name, begin), []

    def was_compiling(self, seconds: float) -> None:
        """The last seconds went into compiling, and so did what was said before of a part of them."""
        now = self._now()
        begin = max(now - seconds, self._stack[-1][1])
        self._inner = [(b, e) for b, e in self._inner if b < begin] + [(begin, now)]

    def seconds(self) -> dict[str, float]:
        """Of each phase so far; 'compile' is taken out of the others."""
        return self._with(*self._stack[-1])

    def _with(self, name: str, begin: float) -> dict[str, float]:
        found, now = dict(self._seconds), self._now()
        if compiling := sum(e - b for b, e in self._inner):
            found["compile"] = found.get("compile", 0.0) + compiling
        found[name] = found.get(name, 0.0) + now - begin - compiling
        return found

    def current(self) -> tuple[str, float]:
        """(name, seconds in it); '' between phases."""
        name, begin = self._stack[-1]  # the main thread may leave it meanwhile
        return name, self._now() - begin if name else 0.0


class Watchdog:
    """
    Args:
      seconds: that any phase may take; also 20 times as long as it has ever taken, compiling aside, is allowed.
      first_seconds: that a phase may take the first times, in which programs are compiled.
      end_after: seconds from the warning to the end of the process.
      end: ends the process with these last words, whatever its threads wait for.
    """

    FACTOR = 20

    def __init__(
        self, phases: Phases, seconds: float, first_seconds: float, end_after: float, end: Callable[[str], None]
    ):
        self._phases, self._seconds, self._first, self._after = phases, seconds, first_seconds, end_after
        self._end, self._warned, self._leaving = end, "", threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._leaving.set()
        self._thread.join()

    def limit(self, phase: str) -> float:
        """Seconds that it may take now."""
        if self._phases.times.get(phase, 0) < _KNOWN:
            return max(self._first, self._seconds)
        return max(self._seconds, self.FACTOR * self._phases.longest[phase])

    def _watch(self) -> None:
        interval = min(1.0, self._seconds / 4)
        awake, begin, asleep, warned_at = time.monotonic(), 0.0, 0.0, 0.0
        while not self._leaving.wait(interval):
            now = time.monotonic()
            phase, seconds = self._phases.current()
            if abs(now - seconds - begin) > interval / 4:  # another one, or the same anew
                begin, asleep = now - seconds, 0.0
            if now - awake > 2 * interval + 0.5:  # this process was stopped meanwhile (SIGSTOP, a laptop's lid)
                asleep += now - awake - interval
                warned_at += now - awake - interval
            awake, seconds = now, seconds - asleep
            if not phase or seconds < self.limit(phase):
                self._warned = ""
                continue
            if self._warned != phase:
                self._warned, warned_at = phase, now
                longest = self._phases.longest.get(phase, 0.0)
                print(
                    f"no progress: {phase!r} takes {seconds:,.0f} seconds by now (the longest before: {longest:,.1f}). "
                    f"If it goes on, this process ends in {self._after:,.0f} seconds. What all threads do:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            elif now - warned_at > self._after:
                self._end(
                    f"error: {phase!r} hangs: no progress in {seconds:,.0f} seconds. The same command continues from "
                    "the last checkpoint"
                )
                return
