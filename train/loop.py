"""The only loop: next batch, step, log, evaluate, save; ends at the last step, on a signal, when evaluations get no
better, or when numbers stay bad.

Results are read one step late, so that the device always has its next step waiting. Everything it continues from
after a stop is saved together: state, data position, running sums, waiting for a better evaluation.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train import guard
from train.checkpoints.checkpoint import Checkpoints
from train.checkpoints.read_back import compare
from train.checkpoints.saves import Saves
from train.early_stopping import EarlyStopping
from train.record.metrics import Clock, Progress, Writer
from train.record.profiler import Profiler
from train.record.window import Window
from train.state import TrainState
from train.watch.goodput import Goodput, share
from train.watch.phases import Phases
from train.watch.silent_corruption import Checker
from train.watch.stop_requests import StopRequests

ON_BAD_STEPS = ("stop", "roll_back")


class TrainingStopped(Exception):
    """The run cannot go on; the message says why and what to do."""


class RollBack(Exception):
    """The run is to go on from its last checkpoint, but with the data from `position` on; the message says why."""

    def __init__(self, why: str, step: int, position: Any, wall: dict[str, float]):
        self.step, self.position, self.wall = step, position, wall
        super().__init__(why)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things happen, in steps; 0: never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    max_bad_steps: int  # updates left out in a row, after which the run stops, or rolls back
    on_bad_steps: str = "stop"  # of ON_BAD_STEPS
    check_every: int = 0
    profile_start: int = 0  # first step of the profiler's window
    profile_steps: int = 0


@dataclasses.dataclass
class Parts:
    """What the loop drives."""

    train_step: Callable  # (state, batch) -> (state, metrics)
    source: Any  # .next() -> host batch; .position() -> JSON; .damaged() -> lines, what was left out since
    checker: Checker
    put: Callable  # host batch -> global batch on the mesh
    evaluate: Callable  # model -> {name: value}
    observe: Callable  # (step, {name: value}) of each evaluation; what it raises ends the run without a save
    stopping: EarlyStopping
    learning_rates: np.ndarray  # of each step
    checkpoints: Checkpoints
    phases: Phases
    goodput: Goodput
    meet: Callable  # what for -> None, when all processes have come to it
    writer: Writer
    progress: Progress
    workdir: Any


def train(state: TrainState, step: int, loop: dict, schedule: Schedule, parts: Parts) -> tuple[TrainState, int]:
    """Train from `step` (batches already consumed) to `schedule.steps`; returns earlier after SIGTERM or SIGINT (of
    several processes, to any of them), and when `parts.stopping` has ended. Either is saved; with early stopping, so is
    each evaluation that is the best yet. An evaluation that fails ends the run with its error, once the step is saved.

    Args:
      loop: what `Checkpoints.restore` returned beside the state ({} at the start).

    Raises:
      TrainingStopped: `max_bad_steps` updates in a row were left out, or nothing in a batch counts.
      RollBack: the former, where `on_bad_steps` says so.
      SilentCorruption: a device's numbers can't be trusted.
      UnknownMetric: evaluations lack the metric of `parts.stopping`.
      CheckpointError: the last save failed.
    """
    window, clock, pending, evaluation, counters = Window(loop.get("window")), Clock(step), None, None, {}
    first = step
    due = lambda every, at: every and (at % every == 0 or at == schedule.steps)

    def read(pending) -> None:
        """Take in the result of an earlier step; log it where due."""
        at, result, place, behind = pending
        with parts.phases("step"):
            result = {name: np.asarray(value, float) for name, value in jax.device_get(result).items()}
        window.add(result)
        if not result["weight"]:
            raise TrainingStopped(f"all weights of the batch of step {at} are 0: nothing can be learnt from it")
        if result["left_out"]:
            _left_out(at, result, place, parts)
        if result["streak"] >= schedule.max_bad_steps:
            why = f"the updates of steps {at - schedule.max_bad_steps + 1} to {at} were all left out (the last: "
            why += f"{guard.REASONS[int(result['left_out'])]})"
            if schedule.on_bad_steps == "roll_back":
                raise RollBack(why, at, behind, parts.goodput.wall())
            raise TrainingStopped(
                f"{why}; none of them changed the model. Look at the data (metrics.jsonl says which rows), raise "
                "config.spike, or set config.on_bad_steps=roll_back: the same command then continues from the last "
                "checkpoint, where there is one. With another config.optimizer.learning_rate or "
                "config.optimizer.warmup_steps it is another run: use a new --workdir"
            )
        if at == first + 1:
            clock.skip(at)  # it was compiling
        if due(schedule.log_every, at):
            with parts.phases("log"):
                _log(at, window.flush(), clock.lap(at), parts)

    def save(step: int) -> None:
        if schedule.check_every:
            with parts.phases("check"):
                parts.checker.replicas(state, step)
        with parts.phases("barrier"):
            parts.meet(f"the save of step {step}")
        if counters.get("step") != step:  # else a save of this step is tried again
            counters.update(step=step, window=window.to_json(), early_stopping=parts.stopping.to_json())
            counters["wall"] = parts.goodput.wall()
            counters["position"] = parts.source.position()
        parts.checkpoints.save(step, state, dict(counters), evaluation)  # written while we go on

    read_back = lambda step: compare(parts.checkpoints, step, state)
    saves = Saves(save, read_back, parts.checkpoints, parts.writer, parts.progress)
    profiler = Profiler(schedule.profile_start, schedule.profile_steps, parts.workdir, parts.progress)
    with StopRequests() as stop, profiler, parts.progress:
        while step < schedule.steps and not stop and not parts.stopping.ended:
            profiler.at(step)
            place = parts.source.position()
            with parts.phases("data", behind=lambda before=pending: before and not before[1]["weight"].is_ready()):
                batch = parts.source.next()
            for line in parts.source.damaged():
                parts.writer.event(step + 1, {"damaged_row": line})
            if due(schedule.check_every, step + 1):
                if pending:
                    read(pending)
                    pending = None
                    clock.lap(step)
                with parts.phases("check"):
                    state, result = parts.checker.twice(state, parts.put(batch), step + 1)
                clock.skip(step + 1)
            else:
                with parts.phases("step"):
                    state, result = parts.train_step(state, parts.put(batch))
            step += 1
            stop.ask(step)
            if pending:
                read(pending)
            pending, evaluation = (step, result, place, parts.source.position()), None
            evaluating = due(schedule.eval_every, step)
            saving = due(schedule.checkpoint_every, step) or saves.due(step) or stop
            if evaluating or saving:
                read(pending)
                pending = None
                clock.lap(step)
                if evaluating:
                    try:
                        found = _evaluated(step, state, window, parts)
                        best = parts.stopping.update(step, found)
                    except Exception as error:  # whatever it is, the steps before it are not lost with it
                        _save_despite(error, step, saves, parts)
                        raise
                    evaluation = found
                    parts.observe(step, evaluation)
                    saving = saving or parts.stopping.ended or (best and parts.stopping.patience)
                if saving:
                    with parts.phases("save"):
                        saves.now(step)
                clock.skip(step)
        if pending:
            read(pending)
            clock.lap(step)
        if not stop and (arrays := window.flush_arrays()):  # no evaluation has written them
            parts.writer.write(step, arrays)
        if parts.stopping.ended and schedule.log_every and not due(schedule.log_every, step):
            _log(step, window.flush(), clock.lap(step), parts)  # the last window; a run that goes on has all of it
        if stop or parts.stopping.ended or due(schedule.checkpoint_every, step):  # last: what is saved is done
            with parts.phases("save"):
                saves.last(step)
        with parts.phases("save"):
            parts.checkpoints.wait()
        parts.writer.flush()
    return state, step


def _evaluated(step: int, state: TrainState, window: Window, parts: Parts) -> dict[str, float]:
    with parts.phases("evaluate"):
        found = parts.evaluate(state.model)
    with parts.phases("log"):
        parts.writer.write(step, found | window.flush_arrays())
    parts.progress.message(evaluation_line(step, found))
    return found


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


def _log(step: int, means: dict[str, float], seconds: float, parts: Parts) -> None:
    rate, progress = float(parts.learning_rates[step - 1]), parts.progress
    values = {"loss": means.pop("loss"), "learning_rate": rate, **means}
    if progress.perplexity:
        values["perplexity"] = math.exp(min(values["loss"], 700.0))
    if math.isfinite(seconds):
        values["seconds_per_step"] = seconds
        values["tokens_per_second"] = progress.tokens_per_step / seconds
        if progress.peak_flops:
            values["mfu"] = progress.flops_per_token * values["tokens_per_second"] / progress.peak_flops
    values |= {"goodput": share(wall := parts.goodput.wall()), "wall": wall}
    parts.writer.write(step, values)
    progress.update(step, values["loss"], rate, seconds)


def _left_out(step: int, result: dict, place: Any, parts: Parts) -> None:
    """Say and keep why the update of a step was not made, and where its batch begins."""
    why, norm = guard.REASONS[int(result["left_out"])], float(result["grad_norm"])
    loss = float(result["loss"]) if "loss" in result else math.nan
    parts.writer.event(step, {"left_out": why, "loss": loss, "grad_norm": norm, "position": place})
    parts.progress.message(f"step {step}: update left out, {why} (loss {loss:.4g}, gradient norm {norm:.4g})")


def evaluation_line(step: int, evaluation: dict[str, float]) -> str:
    """What a person sees of an evaluation."""
    shown = "  ".join(f"{name.removeprefix('validation/').replace('_', ' ')} {v:.4g}" for name, v in evaluation.items())
    return f"step {step}  validation: {shown}"
