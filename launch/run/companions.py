"""Loads an objective's companions, frozen models beside the one that trains, from the workdirs that a config names.

A companion's arrays are not saved with the run. Its workdir, step and content hash are, and a run that continues must
find the same model there. The reference of an adapter is the adapter's own base: the step turns the adapter off
(train/step.py), so nothing is loaded and it takes no memory.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from launch.program.checking import ConfigError
from launch.run import models, restore
from launch.run.early_stopping import find_step
from launch.run.workdirs import Workdir
from model import architectures
from model.adapt.prompt import Prompt
from model.adapt.tuning import stands_on_frozen_base
from model.config import ModelConfig
from model.fingerprint import array_sum, fingerprint
from model.weights import frozen, trained
from train import state as states
from train.objectives.objective import Companion, Objective


class Companions(NamedTuple):
    models: dict  # by name, frozen, on the mesh that is set
    record: dict[str, dict]  # by name: workdir, step and content hash


def check(objective: Objective, config: ConfigDict) -> None:
    """Checks, before anything is read, that a config names a workdir for each companion.

    Raises:
      ConfigError: it does not, or its rows are not for companions, because prompt tuning puts vectors into them.
    """
    if objective.companions and isinstance(models.tuning(config).method, Prompt):
        raise ConfigError(
            f"config.adapt.method prompt puts vectors into the rows, which the {objective.companions[0].name} of "
            f"config.objective.name {config.objective.name!r} does not have; choose another method, such as lora"
        )
    for companion in objective.companions:
        _workdir(objective, config, companion)


def found(objective: Objective, config: ConfigDict, model, recorded: dict[str, dict]) -> Companions:
    """Loads the companions of an objective onto the current mesh.

    Args:
      objective: names its companions.
      config: holds their workdirs.
      model: the model that trains, or its shapes; companions use its dtype, attention kernel and the like.
      recorded: the record in the run's checkpoint; {} for a new run.

    Raises:
      ConfigError: a workdir holds another model than when the run began.
    """
    beside, record = {}, {}
    for companion in objective.companions:
        if companion.field == "init_from" and stands_on_frozen_base(model):
            continue  # the step takes its adapter off
        workdir = _workdir(objective, config, companion)
        before = recorded.get(companion.name)
        wanted = str(before["step"]) if before else config.init_step if companion.field == "init_from" else ""
        with contextlib.closing(workdir.checkpoints()) as checkpoints:
            step = find_step(checkpoints, wanted)
        beside[companion.name], content = _loaded(workdir, companion, model.config, str(step))
        check_same(companion, workdir, before, content)
        record[companion.name] = {"workdir": str(workdir.path), "step": step, "content": content}
    return Companions(beside, record)


def check_same(companion: Companion, workdir: Workdir, before: dict | None, content: str) -> None:
    """Checks that a companion is the model that a run has recorded; `before` is that record, None for a new run.

    Raises:
      ConfigError: it is another one.
    """
    if before and before["content"] != content:
        raise ConfigError(
            f"config.{companion.field} {workdir.path} holds another model than when the run began, so the "
            f"{companion.name} of the run is gone: bring it back, or use a new --workdir"
        )


def _loaded(workdir: Workdir, companion: Companion, like: ModelConfig, step: str):
    """Returns (a frozen model, content hash of its stored arrays).

    The model that a run begins with is loaded as the run loads it: an adapter is merged into the original weights. Any
    other model is loaded as it was trained, over quantized weights too.
    """
    config = _computing_like(workdir.architecture, like)
    if companion.field == "init_from" or workdir.tuning.method is None:
        # A wider dtype than that of the stored parameters would take memory and change nothing.
        width = lambda name: jnp.dtype(name).itemsize
        narrow = min(restore.stored_dtype(workdir), like.param_dtype, key=width)
        config = dataclasses.replace(config, cuts=(), param_dtype=narrow)
        model, content, _ = restore.pretrained(workdir, config, labels=workdir.labels, step=step)
    else:
        model, base = restore.over_base(workdir, config, workdir.tuning, step)
        sums = {name: array_sum(leaf[...]) for name, leaf in trained(model).items()}
        content = fingerprint(sums | {"base": base})
    return frozen(model), content


def planned(objective: Objective, config: ConfigDict, model) -> dict:
    """Returns the companions' shapes on the current mesh, for a plan.

    Args:
      model: the shapes of the model that trains. A companion whose workdir is not here is as large.
    """
    shapes = {}
    for companion in objective.companions:
        if companion.field == "init_from" and stands_on_frozen_base(model):
            continue
        path = _path(config, companion)
        is_here = bool(path) and (Path(path) / "config.json").exists()
        there = Workdir(Path(path).absolute()).architecture if is_here else model.config
        like = dataclasses.replace(_computing_like(there, model.config), cuts=())
        shapes[companion.name] = states.abstract_model(lambda rngs, like=like: frozen(architectures.make(like, rngs)))
    return shapes


def _path(config: ConfigDict, companion: Companion) -> str:
    value = config
    for part in companion.field.split("."):
        value = value.get(part, "") if isinstance(value, ConfigDict) else ""
    return value


def _workdir(objective: Objective, config: ConfigDict, companion: Companion) -> Workdir:
    """Returns the workdir of a companion.

    Raises:
      ConfigError: the config names none, or it holds no run.
    """
    field, path = f"config.{companion.field}", _path(config, companion)
    if not path:
        raise ConfigError(
            f"{field} is empty, but config.objective.name {config.objective.name!r} needs a {companion.name} beside "
            "the model that trains: set it to the workdir of that model"
        )
    if not (Path(path) / "config.json").exists():
        raise ConfigError(
            f"{field} {path} holds no run (no config.json in {Path(path).absolute()}); the {companion.name} is read "
            f"from there: bring it back, or, if this run has begun, set {companion.field} in its config.json to the "
            "new place (a content hash shows whether it is the same model)"
        )
    return Workdir(Path(path).absolute())


def _computing_like(config: ModelConfig, like: ModelConfig) -> ModelConfig:
    """Returns the architecture with the dtype and kernels of `like`, without dropout, noise and remat."""
    same = ("dtype", "attention", "context", "scan_unroll", "pipeline_slots", "pipeline_groups")
    return dataclasses.replace(
        config,
        dropout=0.0,
        embedding_noise=0.0,
        remat="none",
        **{name: getattr(like, name) for name in same},
    )
