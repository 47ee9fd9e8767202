"""config.init_from: a run that begins with the parameters, the architecture and the tokenizer of another workdir.

Optimizer and step are new. An adapter's checkpoints hold the adapter alone, so it needs the other workdir for good; any
other run does not, once it has its first checkpoint.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from launch.program.checking import ConfigError, checking
from launch.run import models, restore, workdirs
from launch.run.defaults import flat
from launch.run.early_stopping import find_step
from launch.run.workdirs import Workdir
from model import architectures
from model.adapt.tuning import Tuning
from model.config import ModelConfig
from model.interop.registry import RUNNING
from train import state


class _Taken(NamedTuple):
    """What a run takes from the other workdir: from there at its start, later as it has recorded it."""

    place: str  # as it is written in the config
    step: str
    model: dict  # the block `model`
    tokenizer: ConfigDict  # the block `data.tokenizer`
    facts: dict  # of which family the model is, where that is known


def resolve(config: ConfigDict, workdir: Workdir, chosen: Iterable[str] = ()) -> tuple[ConfigDict, Workdir | None]:
    """(the config with architecture and tokenizer of config.init_from, the workdir that this names); without one, (the
    config as it is, None).

    Fields that are of a run and not of its parameters (registry.RUNNING: dtype, remat, dropout, ...) stay as they are.

    Args:
      workdir: of the run; once it has a checkpoint, what it has recorded counts.
      chosen: fields that the user has set, 'model.num_layers': they must not contradict.

    Raises:
      ConfigError: there is nothing to begin with, though an adapter needs it, or a chosen field says something else.
    """
    begun = workdirs.begun(workdir.path)
    if begun:
        _refuse_another(config, workdir)
    if not config.init_from:
        if models.tuning(config).method:
            raise ConfigError(
                f"config.adapt.method {config.adapt.method} trains over a model that is there: set config.init_from to "
                "its workdir"
            )
        return config, None
    source = Workdir(Path(config.init_from).absolute())
    if begun and workdir.tuning.method:
        source = workdir.base  # is still needed, and must be there
    taken = _recorded(workdir, config) if begun else _found(source, config)
    own = {*RUNNING}
    if models.objective(config).head(config.data):  # it is of the data; `create` takes the source's over where it fits
        own |= {"head", "num_labels"}
    _refuse_contradictions(config, taken.model, [name for name in chosen if name.removeprefix("model.") not in own])
    config = _with(config, taken, own)
    if not begun or workdir.tuning.method:
        _keep_form(config, source)
    return config, source


def _with(config: ConfigDict, taken: _Taken, own: Set[str]) -> ConfigDict:
    """The config with what is taken; fields of the model whose names are in `own` stay as they are."""
    fields = {name: value for name, value in taken.model.items() if name not in own}
    left_to_data = {"head": "", "num_labels": 0}
    fields |= {name: value for name, value in left_to_data.items() if name in own}
    fields |= {name: value for name, value in config.model.items() if name in own}
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model = ConfigDict(fields)
        config.data.tokenizer = taken.tokenizer
        config.init_from, config.init_step = taken.place, taken.step
        config.update(taken.facts)
    return config


def _found(source: Workdir, config: ConfigDict) -> _Taken:
    """What a new run begins with."""
    restore.check_mergeable(source)
    if note := restore.quantization_note(source):
        print(
            f"warning: {note}; launch.convert --merge --merge_into=quantized makes a workdir of that", file=sys.stderr
        )
    with contextlib.closing(source.checkpoints()) as checkpoints:
        step = find_step(checkpoints, config.init_step)
    words = ConfigDict({"kind": "file", "path": str(Path(config.init_from) / "tokenizer.json")})
    return _Taken(config.init_from, str(step), dataclasses.asdict(source.architecture), words, _facts(source))


def _recorded(workdir: Workdir, config: ConfigDict) -> _Taken:
    """The same of a run that goes on; a step that the user names again must be the same."""
    there = workdir.config
    step = config.init_step if config.init_step.isdecimal() else there.init_step
    return _Taken(there.init_from, step, there.model.to_dict(), there.data.tokenizer, _facts(workdir))


def _keep_form(config: ConfigDict, source: Workdir) -> None:
    """Says in config.adapt that the base is quantized, where the other workdir holds one that is. `float`, its default,
    means the weights as they are there."""
    form, tuning = source.compression, models.tuning(config)
    if form is None:
        return
    if tuning.method is None:
        raise ConfigError(
            f"config.init_from {config.init_from} holds weights in {form.kind}, which can't train: train an adapter "
            "over them (configs/lora.py), or begin with the model that they were made of"
        )
    there, wanted = models.base_fields(form), models.base_fields(tuning.quantization)
    if wanted and wanted != there:
        raise ConfigError(
            f"config.init_from {config.init_from} holds weights in another form than config.adapt wants: {there} "
            f"there, {wanted} now; leave config.adapt.base float (as they are there), or begin with the model that "
            "they were made of"
        )
    with config.unlocked():
        config.adapt.update(there)


def _facts(workdir: Workdir) -> dict:
    return {"model_type": workdir.config.model_type} if "model_type" in workdir.config else {}


def _refuse_another(config: ConfigDict, workdir: Workdir) -> None:
    there, now = workdir.config.init_from, config.init_from
    if bool(there) != bool(now) or Path(there).absolute() != Path(now).absolute():
        raise ConfigError(
            f"{workdir.path} holds a run with config.init_from {there!r}, not {now!r}; use a new --workdir, or the "
            "same value"
        )


def _refuse_contradictions(config: ConfigDict, model: dict, chosen: Iterable[str]) -> None:
    """`chosen`: fields that the user has set, without those of a model that a run says for itself."""
    of_the_source = flat({"model": model})
    lines = []
    for name in chosen:
        value = config
        for part in name.split("."):
            value = value[part]
        if name.startswith("data.tokenizer."):
            lines.append(f"config.{name}: a run takes the tokenizer with the parameters")
        elif name.startswith("model."):
            there = of_the_source.get(name)
            if json.dumps(there) != json.dumps(value):  # where a tuple is a list
                lines.append(f"config.{name}: {there!r} there, {value!r} now")
    if lines:
        raise ConfigError(
            f"config.init_from {config.init_from} says otherwise; leave these flags out:\n  " + "\n  ".join(lines)
        )


def create(
    config: ConfigDict,
    source: Workdir | None,
    model_config: ModelConfig,
    tuning: Tuning,
    tx,
    resume: bool = False,
    labels: dict | None = None,
) -> tuple[state.TrainState, str | None]:
    """(state that a run begins with, content hash of its base): parameters of config.init_from or random ones, and a
    new optimizer. There is a hash where only what trains over the base will be saved.

    Args:
      source: the workdir of config.init_from; None: there is none.
      resume: the state will be read from a checkpoint: only what that does not hold is made, the rest are shapes.
      labels: of a classifier (data/examples/labels.py).
    """
    make_model = lambda rngs: tuning.apply(architectures.make(model_config, rngs), rngs.params())
    if resume and not tuning.method:
        return state.abstract(make_model, tx), None
    if source is None:
        return state.create(make_model, tx, config.seed), None
    model, base, new = restore.pretrained(
        source, model_config, config.seed, labels, tuning.quantization, config.init_step
    )
    with checking("config"):
        model = restore.tuned(model, tuning, config.seed)
    if not resume:
        print(f"begins with the parameters of {config.init_from}" + (f"; new: {', '.join(new)}" if new else ""))
    return state.around(model, tx), base if tuning.method else None
