"""Phases measure what a run spends its time on, and a watchdog ends a run that hangs in one.

If a device, a network or a disk hangs, the process waits forever: there is no error, and a cluster sees a process that
is alive. So each phase has a name and a history. If one takes far longer than ever before, the watchdog (a thread)
reports the phase with the stack traces of all threads, and after a while ends the process, so that the cluster restarts
it.
"""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

_KNOWN = 3  # a phase that has ended less often than this may take `first_seconds`


class Phases:
    """Measures the phases of one process. Its main thread enters them: `with phases("save"): ...`.

    The time of a nested phase does not count for the outer one. Time between phases counts for the phase ''.

    Args:
      now: clock in seconds; tests pass their own.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self._stack = now, [("", now())]
        self._inner: list[tuple[float, float]] = []  # (begin, end) of compilations in the current phase
        self.longest: dict[str, float] = {}
        self.times: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, behind: Callable[[], bool] = lambda: False):
        """Enters a phase. If `behind()` is true at its end, steps ran on the device meanwhile, so its time counts as
        'step'."""
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
        """Adds the time since the current phase began or was resumed."""
        (name, begin), now = self._stack[-1], self._now()
        compiling = sum(e - b for b, e in self._inner)
        self.longest[name] = max(self.longest.get(name, 0.0), now - begin - compiling)
        self._seconds, self._inner = self._with(counted_as or name, begin), []

    def was_compiling(self, seconds: float) -> None:
        """Records that the last `seconds` went into compilation. Compilations recorded inside of them are merged."""
        now = self._now()
        begin = max(now - seconds, self._stack[-1][1])
        self._inner = [(b, e) for b, e in self._inner if b < begin] + [(begin, now)]

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase so far. Compilation counts as 'compile', not for the phase around it."""
        return self._with(*self._stack[-1])

    def _with(self, name: str, begin: float) -> dict[str, float]:
        found, now = dict(self._seconds), self._now()
        if compiling := sum(e - b for b, e in self._inner):
            found["compile"] = found.get("compile", 0.0) + compiling
        found[name] = found.get(name, 0.0) + now - begin - compiling
        return found

    def current(self) -> tuple[str, float]:
        """Returns (name, seconds in it) of the current phase; ('', 0.0) between phases."""
        name, begin = self._stack[-1]  # read once: the main thread may leave the phase meanwhile
        return name, self._now() - begin if name else 0.0


class Watchdog:
    """A thread that ends the process if a phase hangs.

    Args:
      seconds: every phase may take this long, or 20 times its longest time so far without compilation if that is more.
      first_seconds: a phase may take this long the first few times, because programs compile then.
      end_after: seconds from the warning to the end of the process.
      end: (message) -> None; ends the process, whatever its threads wait for.
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
        """Returns how many seconds the phase may take now."""
        if self._phases.times.get(phase, 0) < _KNOWN:
            return max(self._first, self._seconds)
        return max(self._seconds, self.FACTOR * self._phases.longest[phase])

    def _watch(self) -> None:
        interval = min(1.0, self._seconds / 4)
        awake, begin, asleep, warned_at = time.monotonic(), 0.0, 0.0, 0.0
        while not self._leaving.wait(interval):
            now = time.monotonic()
            phase, seconds = self._phases.current()
            if abs(now - seconds - begin) > interval / 4:  # another phase began, or the same one again
                begin, asleep = now - seconds, 0.0
            # The process was suspended (SIGSTOP, a closed laptop): that time does not count as a hang.
            if now - awake > 2 * interval + 0.5:
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
                    f"no progress: {phase!r} has taken {seconds:,.0f} seconds so far (longest before: {longest:,.1f}). "
                    f"Unless it ends, this process ends in {self._after:,.0f} seconds. Stack traces of all threads:",
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
