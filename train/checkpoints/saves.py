"""Saves with retries: a failed save does not end a run. Only the save at the end must succeed.

A failed save is reported, recorded in metrics.jsonl and tried again after some steps. The first save of a run is read
back, because an unreadable checkpoint is an error that does not go away.

With several processes a failed save ends all of them, because a retry would require that each knows of the failure on
the others. The same command then continues from the last good step.
"""

import time
from collections.abc import Callable

import jax

from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.record.metrics import Progress, Writer

_LONGEST_WAIT = 1024  # steps
_LAST_ATTEMPTS, _SECONDS_BETWEEN = 3, 2.0


class Saves:
    """Saves steps, and decides when a failed save is tried again.

    Args:
      save: (step) -> None. It raises CheckpointError, also for the previous save, which runs in the background.
      read_back: (step) -> None. It raises an error that ends the run if the checkpoint cannot be read.
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
        # A run that continues from a checkpoint has read one already.
        self._read_back = read_back if self._complete is None else None

    def due(self, step: int) -> bool:
        """Returns whether to try a failed save again after this step. It also notices failures in the background."""
        try:
            self._checkpoints.check()
        except CheckpointError as error:
            self._failed(step, error)
        return self._again is not None and step >= self._again

    def now(self, step: int) -> None:
        """Starts to save in the background. The first save is waited for and read back."""
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
        """Saves and waits until it is on disk.

        Raises:
          CheckpointError: it failed several times in a row, or the first checkpoint of the run cannot be read.
        """
        for left in reversed(range(_LAST_ATTEMPTS)):
            try:
                self._save(step)
                self._checkpoints.wait()
                break
            except CheckpointError as error:
                if not left or jax.process_count() > 1:
                    raise
                self._progress.message(f"step {step}: {error}; next attempt in {_SECONDS_BETWEEN:.0f} seconds")
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
        self._progress.message(f"step {step}: {error}; training continues, next attempt after step {self._again}")
