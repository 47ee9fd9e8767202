"""Saving that does not end a run: a save that fails is said, kept in metrics.jsonl and tried again; the last one must
succeed. The first save of a run is read back, for a checkpoint that can't be read is no failure that passes.

Of several processes a save that fails ends all, as each would have to know it of the others; the same command continues
from the last good step.
"""

import time
from collections.abc import Callable

import jax

from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.record.metrics import Progress, Writer

_LONGEST_WAIT = 1024  # steps
_LAST_ATTEMPTS, _SECONDS_BETWEEN = 3, 2.0


class Saves:
    """
    Args:
      save: (step) -> None, which raises CheckpointError; the error may be of the save before, which runs behind.
      read_back: (step) -> None, which raises what is to end the run.
    """

    def __init__(
        self,
        save: Callable[[int], None],
        read_back: Callable[[int], None],
        checkpoints: Checkpoints,
        writer: Writer,
        progress: Progress,
    ):
        self._save, self._checkpoints, self._writer, self._progress = save, checkpoints, writer, progress
        self._wait, self._complete = 1, checkpoints.newest_complete()
        self._again: int | None = None  # the step after which a failed save is tried again
        self._read_back = read_back if self._complete is None else None  # else this run was continued from one

    def due(self, step: int) -> bool:
        """Whether to try again after this step; sees what has failed in the background."""
        try:
            self._checkpoints.check()
        except CheckpointError as error:
            self._failed(step, error)
        return self._again is not None and step >= self._again

    def now(self, step: int) -> None:
        """Begin to save; training goes on, but for the first save, which is waited for and read back."""
        if (complete := self._checkpoints.newest_complete()) != self._complete:
            self._wait, self._complete = 1, complete
        self._again = None
        try:
            self._save(step)
            if self._read_back:
                self._checkpoints.wait()
        except CheckpointError as error:
            self._failed(step, error)
            return
        self._read_first(step)

    def last(self, step: int) -> None:
        """Save to the end.

        Raises:
          CheckpointError: several times in a row, or the first of the run can't be read.
        """
        for left in reversed(range(_LAST_ATTEMPTS)):
            try:
                self._save(step)
                self._checkpoints.wait()
                break
            except CheckpointError as error:
                if not left or jax.process_count() > 1:
                    raise
                self._progress.message(f"step {step}: {error}; tries again in {_SECONDS_BETWEEN:.0f} seconds")
                time.sleep(_SECONDS_BETWEEN)
        self._read_first(step)

    def _read_first(self, step: int) -> None:
        if self._read_back:
            self._read_back(step)
            self._read_back = None

    def _failed(self, step: int, error: CheckpointError) -> None:
        if jax.process_count() > 1:
            raise error
        self._again, self._wait = step + self._wait, min(2 * self._wait, _LONGEST_WAIT)
        self._writer.event(step, {"save_failed": str(error), "again_at": self._again})
        self._progress.message(f"step {step}: {error}; training goes on, and tries again after step {self._again}")
