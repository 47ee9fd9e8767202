"""The loop's arguments: a schedule in steps, and the objects that the loop calls."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from train.checkpoints.checkpoint import Checkpoints
from train.early_stopping import EarlyStopping
from train.record.metrics import Progress, Writer
from train.watch.goodput import Goodput
from train.watch.phases import Phases
from train.watch.silent_corruption import Checker


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When the loop logs, evaluates, saves and checks, in steps. 0 means never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    max_bad_steps: int  # after so many skipped updates in a row the run stops or rolls back
    on_bad_steps: str = "stop"  # one of loop.ON_BAD_STEPS
    check_every: int = 0
    profile_start: int = 0  # first step of the profiler's window
    profile_steps: int = 0


@dataclasses.dataclass
class Parts:
    """The objects and functions that the loop calls."""

    train_step: Callable  # (state, batch) -> (state, metrics)
    # .next(state) -> host batch; .figures() -> {name: number} about it; .events() -> JSON objects about what went
    # wrong; .position() -> JSON; .to_json() -> the position with all that a continued run needs; .phase -> the name of
    # the phase of `next`
    source: Any
    checker: Checker
    put: Callable  # host batch -> global batch on the mesh
    evaluate: Callable  # state -> {name: value}
    # Called with (step, {name: value}) after each evaluation; if it raises, the run ends without a save.
    observe: Callable
    stopping: EarlyStopping
    learning_rates: np.ndarray  # [steps], one per step
    checkpoints: Checkpoints
    phases: Phases
    goodput: Goodput
    meet: Callable  # (name of the barrier) -> None; returns when all processes have reached it
    writer: Writer
    progress: Progress
    workdir: Any
