"""The only training loop: next batch, step, log, evaluate, save.

It ends at the last step, on a signal, when evaluations no longer improve, or when too many updates in a row are
skipped. It reads the result of a step one step late, so that the device always has its next step queued. Everything it
needs to continue after a stop is saved together: the state, the data position, the running sums of the metrics, and
the counters of early stopping.
"""

from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from train import guard
from train.checkpoints.read_back import compare
from train.checkpoints.saves import Saves
from train.parts import Parts, Schedule
from train.record import lines
from train.record.metrics import Clock
from train.record.profiler import Profiler
from train.record.window import Window
from train.state import TrainState
from train.watch.stop_requests import StopRequests

ON_BAD_STEPS = ("stop", "roll_back")


class TrainingStopped(Exception):
    """The run cannot continue. The message says why and what to do."""


class RollBack(Exception):
    """Asks the caller to continue from the last checkpoint, with the data from `position` on. The message says why."""

    def __init__(self, why: str, step: int, position: Any, wall: dict[str, float]):
        self.step, self.position, self.wall = step, position, wall
        super().__init__(why)


def train(state: TrainState, step: int, loop: dict, schedule: Schedule, parts: Parts) -> tuple[TrainState, int]:
    """Trains from `step` to `schedule.steps`, and returns the state and the number of steps done.

    It returns earlier if any process receives SIGTERM or SIGINT, or if `parts.stopping` has ended; the state is saved
    in both cases. With early stopping, each evaluation that is the best so far is saved too. If an evaluation fails,
    the step is saved and then the run ends with the error of the evaluation.

    Args:
      step: batches already consumed.
      loop: the second value of `Checkpoints.restore`, {} at the start.

    Raises:
      TrainingStopped: `max_bad_steps` updates in a row were skipped, or all weights of a batch are 0.
      RollBack: `max_bad_steps` updates in a row were skipped, and `on_bad_steps` is 'roll_back'.
      SilentCorruption: a device computed or stored wrong numbers.
      UnknownMetric: the evaluations lack the metric of `parts.stopping`.
      CheckpointError: the last save failed.
    """
    return _Loop(state, step, loop, schedule, parts).run()


class _Pending(NamedTuple):
    """A step that was sent to the device, and whose result was not read yet."""

    step: int
    result: dict[str, jax.Array]
    place: Any  # position of the data before its batch
    behind: Any  # position of the data after its batch
    figures: dict[str, float]  # numbers about its batch


class _Loop:
    """The state of a training run. `run` gives the order of the actions, and the other methods are the actions.

    The host is one step ahead of the results that it reads:

        host      batch 8 | send step 8 | read, log 7 | batch 9 | send step 9 | read, log 8 | ...
        device    ... step 7 ...        | step 8 ...            ...           | step 9 ...

    An evaluation, a save or a check of the devices needs the step that was just sent, so `_catch_up` waits for it.
    """

    def __init__(self, state: TrainState, step: int, loop: dict, schedule: Schedule, parts: Parts):
        self.state, self.step, self.schedule, self.parts = state, step, schedule, parts
        self.first = step
        self.window, self.clock = Window(loop.get("window")), Clock(step)
        self.pending: _Pending | None = None
        self.evaluation: dict[str, float] | None = None  # what ranks this step, if it was evaluated
        self.counters: dict = {}  # JSON that the last save stored beside the state

    def run(self) -> tuple[TrainState, int]:
        schedule, parts = self.schedule, self.parts
        # A local variable, because it holds bound methods of this object. As an attribute it would form a reference
        # cycle, and the old state would stay in memory while a roll-back restores another one.
        saves = Saves(self._save, self._read_back, parts.checkpoints, parts.writer, parts.progress)
        profiler = Profiler(schedule.profile_start, schedule.profile_steps, parts.workdir, parts.progress)
        with StopRequests() as stop, profiler, parts.progress:
            while self.step < schedule.steps and not stop and not parts.stopping.ended:
                profiler.at(self.step)
                place = parts.source.position()
                result = self._send(self._next_batch())
                stop.ask(self.step)
                self._read()
                after = parts.source.position()
                self.pending = _Pending(self.step, result, place, after, parts.source.figures())
                self.evaluation = None
                evaluating = self._due(schedule.eval_every, self.step)
                saving = self._due(schedule.checkpoint_every, self.step) or saves.due(self.step) or stop
                if evaluating or saving:
                    self._catch_up()
                    if evaluating:
                        best = self._evaluate(saves)
                        saving = saving or parts.stopping.ended or (best and parts.stopping.patience)
                    if saving:
                        with parts.phases("save"):
                            saves.now(self.step)
                    self.clock.skip(self.step)
            self._catch_up()
            self._end(stop, saves)
        return self.state, self.step

    def _due(self, every: int, at: int) -> bool:
        return every > 0 and (at % every == 0 or at == self.schedule.steps)

    def _next_batch(self):
        """Returns the next batch, on the host. While the device still computes the last step, this costs no time."""
        working = lambda: self.pending is not None and not self.pending.result["weight"].is_ready()
        with self.parts.phases(self.parts.source.phase, behind=working):
            batch = self.parts.source.next(self.state)
        for event in self.parts.source.events():
            self.parts.writer.event(self.step + 1, event)
        return batch

    def _send(self, batch) -> dict[str, jax.Array]:
        """Sends the step to the device and does not wait for its result. A step that checks devices runs twice, and is
        waited for."""
        parts = self.parts
        if self._due(self.schedule.check_every, self.step + 1):
            self._catch_up()
            with parts.phases("check"):
                self.state, result = parts.checker.twice(self.state, parts.put(batch), self.step + 1)
            self.clock.skip(self.step + 1)
        else:
            with parts.phases("step"):
                self.state, result = parts.train_step(self.state, parts.put(batch))
        self.step += 1
        return result

    def _catch_up(self) -> None:
        """Waits for the step that was sent last, and processes its result."""
        if self.pending:
            self._read()
            self.clock.lap(self.step)

    def _read(self) -> None:
        """Processes the result of the pending step: checks it, adds it to the window, and logs when due."""
        if self.pending is None:
            return
        (at, result, place, behind, of_batch), self.pending = self.pending, None
        with self.parts.phases("step"):
            figures = {name: np.asarray(value, float) for name, value in jax.device_get(result).items()}
        self.window.add(figures, of_batch)
        if not figures["weight"]:
            raise TrainingStopped(
                f"all weights of the batch of step {at} are 0, so it has no loss; look at the data and their masks"
            )
        if figures["left_out"]:
            lines.left_out(at, figures, place, self.parts)
        if figures["streak"] >= self.schedule.max_bad_steps:
            self._give_up(at, figures, behind)
        if at == self.first + 1:
            self.clock.skip(at)  # the first step includes compilation
        if self._due(self.schedule.log_every, at):
            with self.parts.phases("log"):
                lines.log(at, self.window.flush(), self.clock.lap(at), self.parts)

    def _give_up(self, at: int, figures: dict[str, np.ndarray], behind: Any) -> NoReturn:
        """Stops the run or rolls it back, because the last `max_bad_steps` updates up to step `at` were all skipped."""
        why = f"the updates of steps {at - self.schedule.max_bad_steps + 1} to {at} were all skipped (the last: "
        why += f"{guard.REASONS[int(figures['left_out'])]})"
        if self.schedule.on_bad_steps == "roll_back":
            raise RollBack(why, at, behind, self.parts.goodput.wall())
        raise TrainingStopped(
            f"{why}; none of them changed the model. Look at the data (metrics.jsonl names the rows), raise "
            "config.spike, or set config.on_bad_steps=roll_back: the same command then continues from the last "
            "checkpoint, if there is one. To change config.optimizer.learning_rate or "
            "config.optimizer.warmup_steps, start a new run with a new --workdir"
        )

    def _evaluate(self, saves: Saves) -> bool:
        """Evaluates this step and returns whether it is the best so far. If that fails, the step is saved first."""
        parts = self.parts
        try:
            with parts.phases("evaluate"):
                found = parts.evaluate(self.state)
            with parts.phases("log"):
                parts.writer.write(self.step, found | self.window.flush_arrays())
            parts.progress.message(lines.evaluation(self.step, found))
            best = parts.stopping.update(self.step, found)
            if why := parts.stopping.excluded(found):
                lines.not_best(self.step, why, parts)
        except Exception as error:  # of any kind: the steps done since the last checkpoint must not be lost
            _save_despite(error, self.step, saves, parts)
            raise
        self.evaluation = {parts.stopping.metric: parts.stopping.rank(found)}
        parts.observe(self.step, found)
        return best

    def _save(self, step: int) -> None:
        """Starts to save this step. The files are written in the background while training continues."""
        parts = self.parts
        if self.schedule.check_every:
            with parts.phases("check"):
                parts.checker.replicas(self.state, step)
        with parts.phases("barrier"):
            parts.meet(f"the save of step {step}")
        if self.counters.get("step") != step:  # if equal, a failed save of this step is tried again, unchanged
            self.counters.update(step=step, window=self.window.to_json(), early_stopping=parts.stopping.to_json())
            self.counters["wall"] = parts.goodput.wall()
            self.counters["position"] = parts.source.to_json()
        parts.checkpoints.save(step, self.state, dict(self.counters), self.evaluation)

    def _read_back(self, step: int) -> None:
        compare(self.parts.checkpoints, step, self.state)

    def _end(self, stop: StopRequests, saves: Saves) -> None:
        """Writes what is left when a run ends without an error. The last save is complete when this returns."""
        step, parts, ended = self.step, self.parts, self.parts.stopping.ended
        if not stop and (arrays := self.window.flush_arrays()):  # an evaluation would have written them
            parts.writer.write(step, arrays)
        if ended and self.schedule.log_every and not self._due(self.schedule.log_every, step):
            # The run is over, so the incomplete window is logged. A run that will continue keeps it for its next line.
            lines.log(step, self.window.flush(), self.clock.lap(step), parts)
        if stop or ended or self._due(self.schedule.checkpoint_every, step):
            with parts.phases("save"):
                saves.last(step)
        with parts.phases("save"):
            parts.checkpoints.wait()
        parts.writer.flush()


def _save_despite(error: Exception, step: int, saves: Saves, parts: Parts) -> None:
    """Saves the step whose evaluation failed. The run ends with the evaluation's error, even if this save fails."""
    what = f"the evaluation failed ({type(error).__name__})"
    try:
        with parts.phases("save"):
            saves.last(step)
    except Exception as another:
        parts.progress.message(f"step {step}: {what}, and so did the save after it: {another}")
        return
    parts.writer.event(step, {"evaluation_failed": str(error)})
    parts.progress.message(
        f"step {step}: {what}; the step is saved, and the run ends. The same command continues from there, and "
        "python -m launch.evaluate evaluates it"
    )
