"""Loads an objective's companions, frozen models beside the one that trains, from the workdirs that a config names.

A companion's arrays are not saved with the run. Its workdir, step and content hash are, and a run that continues must
find the same model there. The reference of an adapter is the adapter's own base: the step turns the adapter off
(train/step.py), so nothing is loaded and it takes no memory.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import NamedTuple

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
from model.weights import by_name, frozen
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
        field = f"config.{companion.field}"
        path = _path(config, companion)
        if not path:
            raise ConfigError(
                f"{field} is empty, but config.objective.name {config.objective.name!r} needs a {companion.name} "
                "beside the model that trains: set it to the workdir of that model"
            )
        if not (Path(path) / "config.json").exists():
            raise ConfigError(f"{field} {path} holds no run (no config.json); the {companion.name} is read from there")


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
    models, record = {}, {}
    for companion in objective.companions:
        if companion.field == "init_from" and stands_on_frozen_base(model):
            continue  # the step takes its adapter off
        workdir = Workdir(Path(_path(config, companion)).absolute())
        before = recorded.get(companion.name)
        wanted = str(before["step"]) if before else config.init_step if companion.field == "init_from" else ""
        with contextlib.closing(workdir.checkpoints()) as checkpoints:
            step = find_step(checkpoints, wanted)
        found = frozen(restore.model(workdir, _computing_like(workdir.architecture, model.config), str(step)))
        content = fingerprint({name: array_sum(array) for name, array in by_name(found).items()})
        if before and before["content"] != content:
            raise ConfigError(
                f"config.{companion.field} {workdir.path} holds another model than when the run began, so the "
                f"{companion.name} of the run is gone: bring it back, or use a new --workdir"
            )
        models[companion.name] = found
        record[companion.name] = {"workdir": str(workdir.path), "step": step, "content": content}
    return Companions(models, record)


def planned(objective: Objective, config: ConfigDict, model) -> dict:
    """Returns the companions' shapes on the current mesh, for a plan.

    Args:
      model: the shapes of the model that trains. A companion whose workdir is not here is as large.
    """
    shapes = {}
    for companion in objective.companions:
        if companion.field == "init_from" and stands_on_frozen_base(model):
            continue
        path = Path(_path(config, companion) or ".")
        there = Workdir(path.absolute()).architecture if (path / "config.json").exists() else model.config
        like = _computing_like(there, model.config)
        shapes[companion.name] = states.abstract_model(lambda rngs, like=like: frozen(architectures.make(like, rngs)))
    return shapes


def _path(config: ConfigDict, companion: Companion) -> str:
    value = config
    for part in companion.field.split("."):
        value = value.get(part, "") if isinstance(value, ConfigDict) else ""
    return value


def _computing_like(config: ModelConfig, like: ModelConfig) -> ModelConfig:
    """Returns the architecture with the dtype and kernels of `like`, without dropout, noise and remat."""
    same = ("dtype", "attention", "context", "scan_unroll", "pipeline_slots", "pipeline_groups")
    return dataclasses.replace(
        config, dropout=0.0, embedding_noise=0.0, remat="none", **{name: getattr(like, name) for name in same}
    )
