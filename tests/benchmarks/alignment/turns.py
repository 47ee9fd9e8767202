"""Lets a training loop take as many steps as the benchmark asks for, and measures them.

The loop calls `Turns` before each step. Wall time and CPU time, of all threads and child processes, are those between
the first and the last step of a request. The time within `sampling` counts apart.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

_OUT = sys.stdout
sys.stdout = sys.stderr  # what libraries print must not mix with the figures


class Turns:
    """Reads numbers of steps from stdin, and writes {"wall", "cpu", "sampling_wall", "sampling_cpu"}, in seconds.

    Args:
      wait: waits for the device.
    """

    def __init__(self, wait: Callable[[Any], object] = lambda _: None):
        self._wait, self._left = wait, -1
        self._began = self._sampled = (0.0, 0.0)

    def __call__(self, state: Any = None) -> None:
        self._left -= 1
        if self._left > 0:
            return
        self._wait(state)
        if self._left == 0:
            spent = [now - then for now, then in zip(_clocks(), self._began, strict=True)]
            names = ("wall", "cpu", "sampling_wall", "sampling_cpu")
            print(json.dumps(dict(zip(names, [*spent, *self._sampled], strict=True))), file=_OUT, flush=True)
        else:
            print(json.dumps({}), file=_OUT, flush=True)  # ready
        self._left = int(sys.stdin.readline())
        self._began, self._sampled = _clocks(), (0.0, 0.0)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        before = _clocks()
        yield
        wall, cpu = (now - then for now, then in zip(_clocks(), before, strict=True))
        self._sampled = (self._sampled[0] + wall, self._sampled[1] + cpu)


def _clocks() -> tuple[float, float]:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return time.perf_counter(), sum(one.user + one.system for one in times)
