"""What the loop is given: when things happen, and what it drives."""

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
    """When things happen, in steps; 0: never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    max_bad_steps: int  # updates left out in a row, after which the run stops, or rolls back
    on_bad_steps: str = "stop"  # of loop.ON_BAD_STEPS
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
    evaluate: Callable  # state -> {name: value}
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
