"""Profiles a window of steps."""

from pathlib import Path

import jax

from train.record.metrics import Progress


class Profiler:
    """Traces steps [start, start + steps) of process 0 into WORKDIR/profile, for TensorBoard or Perfetto."""

    def __init__(self, start: int, steps: int, workdir: Path, progress: Progress):
        self.start, self.stop, self.folder = start, start + steps, workdir / "profile"
        self.progress, self.running = progress, False

    def at(self, step: int) -> None:
        if self.start <= step < self.stop and not self.running and jax.process_index() == 0:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif step >= self.stop:
            self._end()

    def _end(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            self.progress.message(f"profile written to {self.folder}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()
