"""Worker processes that share calls of reward functions; one that hangs or dies is replaced."""

import collections
import selectors
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from train.align.rewards.process import START_SECONDS, Process
from train.align.rewards.reward import RewardError

Answers = Generator[tuple[int, dict[str, Any]], None, None]
_SLOW = 0.02  # seconds: if no call ends for so long, another process starts. For quick functions one is enough.


class Pool:
    """Up to `most` processes. The first starts at once; others when calls take long. Close it when done."""

    def __init__(self, start: Callable[[], Process], most: int, seconds: float):
        """Starts a process, and waits until it has loaded the functions.

        Args:
          start: starts a process.
          most: the largest number of processes.
          seconds: wall time of a call. A process that takes longer is ended.

        Raises:
          RewardError: a function can't be loaded.
        """
        self._start, self._most, self._seconds = start, most, seconds
        self._selector = selectors.DefaultSelector()
        self._processes: list[Process] = []
        self.close = weakref.finalize(self, _close, self._processes, self._selector)  # at the interpreter's exit too
        try:
            self._add()
            while not self._processes[0].ready:
                collections.deque(self._step(collections.deque()), maxlen=0)
        except BaseException:
            self.close()
            raise

    def run(self, calls: Iterable[Mapping[str, Any]]) -> Answers:
        """Yields (index of the call, answer of worker.py) for each call, in the order in which they end.

        Raises:
          RewardError: a process that replaces another does not start.
        """
        waiting = collections.deque(enumerate(calls))
        try:
            while waiting or any(process.task is not None for process in self._processes):
                yield from self._step(waiting)
        finally:  # the caller stopped early, or was interrupted: nobody wants the answers under way
            for process in [process for process in self._processes if process.task is not None]:
                self._drop(process)

    def _step(self, waiting: collections.deque) -> Answers:
        """Hands out calls, waits until something happens, and yields answers."""
        for process in list(self._processes):
            if waiting and process.ready and process.task is None:
                if process.send(waiting[0][1]):
                    process.task = waiting.popleft()[0]
                else:  # it ended between two calls, and the next call is not to blame
                    self._drop(process)
        if not self._processes:
            self._add()
        working = [process for process in self._processes if process.task is not None or not process.ready]
        more = waiting and len(self._processes) < self._most and all(process.ready for process in working)
        pause = max(0.0, min((process.deadline for process in working), default=0.0) - time.monotonic())
        found = self._selector.select(min(pause, _SLOW) if more else pause)
        for key, _ in found:
            yield from self._receive(key.data)
        if more and not found:
            self._add()
        for process in working:
            late = time.monotonic() >= process.deadline and process in self._processes
            if late and not process.ready:
                raise RewardError(f"the reward functions did not load within {START_SECONDS:g} s")
            if late and process.task is not None:
                yield process.task, {"error": f"took longer than {self._seconds:g} s", "trace": ""}
                self._drop(process)

    def _receive(self, process: Process) -> Answers:
        try:
            answer = process.receive()
        except EOFError:
            how = self._drop(process, patience=5.0)
            if not process.ready:
                raise RewardError(f"a process ended while it loaded the reward functions ({how})") from None
            if process.task is not None:
                yield process.task, {"error": f"ended its process ({how})", "trace": ""}
            return
        if answer is None:
            return
        if process.ready:
            task, process.task = process.task, None
            yield task, answer
        elif "error" in answer:
            raise RewardError(answer["error"])
        else:
            process.ready = True

    def _add(self) -> None:
        self._processes.append(self._start())
        self._selector.register(self._processes[-1], selectors.EVENT_READ, self._processes[-1])

    def _drop(self, process: Process, patience: float = 0.0) -> str:
        self._selector.unregister(process)
        self._processes.remove(process)
        return process.end(patience)


def _close(processes: list[Process], selector: selectors.BaseSelector) -> None:
    for process in processes:
        process.end(patience=0.0 if process.task is not None else 1.0)
    processes.clear()
    selector.close()
