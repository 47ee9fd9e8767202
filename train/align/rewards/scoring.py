"""Scores completions with reward functions, in worker processes.

    with Scoring([("numeric:answer", 1.0), ("rewards.py:short", 0.1)]) as scoring:
        scored = scoring.score([Item(prompt, completion, record), ...])

The functions run in other processes because any of them may hang or crash: a regular expression that never ends holds
Python's lock, so that no thread and no signal handler could stop it. Those processes don't see the accelerator.
"""

import collections
import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.align.rewards.pool import Pool
from train.align.rewards.process import Process
from train.align.rewards.reward import RewardError, Settings, nearest
from train.align.rewards.table import load, of_user

ON_ERROR = ("zero", "skip", "stop")
_CODE_SECONDS = 10.0  # the longest time that code in the sandbox gets
_SHOWN = 80  # letters of a prompt in a message
_REASONS = 5  # different reasons of one function that are written out


class Item(NamedTuple):
    """A completion to score."""

    prompt: str
    completion: str
    columns: Mapping[str, Any]  # the fields of the prompt's record, with values that JSON has


class Scored(NamedTuple):
    """The rewards of N completions by F functions."""

    values_NF: np.ndarray  # float32, 0 where a function failed
    rewards_N: np.ndarray  # float32, the sums of the values times their weights
    failed_NF: np.ndarray  # bool, whether the function failed
    skipped_N: np.ndarray  # bool, whether to leave the completion out: a function failed, and on_error is 'skip'
    notes: list[str]  # a line for each function and reason: how often it failed, and the first prompt


class Scoring:
    """Reward functions, and the processes that call them. Close it, or use it in a `with` statement.

    Any thread may call `score`; calls wait for each other.
    """

    def __init__(
        self,
        functions: Sequence[tuple[str, float]],
        seconds: float = 30.0,
        on_error: str = "zero",
        packages: Sequence[str] = (),
        processes: int = 0,
    ):
        """Checks the functions, and starts a process that loads them.

        Args:
          functions: specifications (table.py) and weights. A weight of 0 only records the values.
          seconds: wall time of a call of a function. Code in the sandbox gets 2 s less, and at most 10 s.
          on_error: what it means when a function fails: 'zero': its reward is 0; 'skip': the completion is to be left
            out; 'stop': a RewardError.
          packages: what code in the sandbox may import besides the standard library.
          processes: the largest number of processes; 0: the number of cores, at most 16.

        Raises:
          RewardError: a function can't be had, or an argument does not fit.
        """
        self.specs = tuple(spec for spec, _ in functions)
        self._weights_F = np.array([weight for _, weight in functions], np.float32)
        self._on_error, self._lock = on_error, threading.Lock()
        self._check_arguments(seconds)
        settings = Settings(min(_CODE_SECONDS, seconds - 2), tuple(packages))
        self._ready = {spec: _ready(spec, settings) for spec in self.specs if not of_user(spec)}
        # A cluster may give this process only some of the machine's cores, which Linux can tell.
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        self._pool = Pool(lambda: Process(self.specs, seconds, settings), processes or min(cores, 16), seconds)

    def _check_arguments(self, seconds: float) -> None:
        if not self.specs:
            raise RewardError("there is no reward function; name at least one")
        if not np.isfinite(self._weights_F).all():
            raise RewardError(f"weights of reward functions must be finite numbers, not {self._weights_F.tolist()}")
        if self._on_error not in ON_ERROR:
            hint = nearest(self._on_error, ON_ERROR)
            raise RewardError(f"on_error must be one of {', '.join(ON_ERROR)}, not {self._on_error!r}{hint}")
        least = 3 if any(spec.startswith("python:") for spec in self.specs) else 0.01
        if not least <= seconds < math.inf:
            raise RewardError(f"a call of these reward functions needs {least:g} seconds or more, not {seconds:g}")

    def check(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Raises a RewardError if with one of these records of prompts no completion could be scored.

        Only ready functions know which columns they need; a user's function is asked when it scores.
        """
        for number, record in enumerate(records, start=1):
            for spec, function in self._ready.items():
                try:
                    function.check(record)
                except RewardError as error:
                    raise RewardError(f"reward {spec!r}, record {number}: {error}") from None

    def score(self, items: Sequence[Item]) -> Scored:
        """Scores completions; the rows of the result are in the order of the items.

        Raises:
          RewardError: on_error is 'stop' and a function failed; or a process can't be replaced; or a record has a value
            that JSON has not.
        """
        size = (len(items), len(self.specs))
        values_NF, failed_NF = np.zeros(size, np.float32), np.zeros(size, bool)
        reasons: list[dict[str, list[int]]] = [collections.defaultdict(list) for _ in self.specs]
        with self._lock, contextlib.closing(self._pool.run(self._calls(items))) as answers:
            for index, answer in answers:
                row, function = divmod(index, len(self.specs))
                if "value" in answer:
                    values_NF[row, function] = answer["value"]
                    continue
                if self._on_error == "stop":
                    prompt = items[row].prompt[:_SHOWN]
                    text = f"reward {self.specs[function]!r} failed: {answer['error']}\nprompt: {prompt!r}"
                    raise RewardError(f"{text}\n{answer['trace']}".strip())
                failed_NF[row, function] = True
                reasons[function][answer["error"]].append(row)
        skipped_N = np.array(failed_NF.any(axis=1) & (self._on_error == "skip"))
        notes = [note for spec, found in zip(self.specs, reasons, strict=True) for note in _notes(spec, found, items)]
        return Scored(values_NF, values_NF @ self._weights_F, failed_NF, skipped_N, notes)

    def _calls(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        for item in items:
            for function in range(len(self.specs)):
                yield {"function": function, **item._asdict()}

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _ready(spec: str, settings: Settings) -> Any:
    try:
        return load(spec, settings)
    except RewardError as error:
        raise RewardError(f"reward {spec!r}: {error}") from None


def _notes(spec: str, reasons: Mapping[str, Sequence[int]], items: Sequence[Item]) -> Iterator[str]:
    ordered = sorted(reasons.items(), key=lambda reason: (-len(reason[1]), min(reason[1])))
    for reason, rows in ordered[:_REASONS]:
        first = items[min(rows)].prompt[:_SHOWN]
        yield f"reward {spec!r} failed on {len(rows)} of {len(items)} completions: {reason}; first prompt: {first!r}"
    if rest := ordered[_REASONS:]:
        count = sum(len(rows) for _, rows in rest)
        yield f"reward {spec!r} failed on {count} of {len(items)} completions for {len(rest)} other reasons"
