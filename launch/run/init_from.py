"""Starts a run from another workdir (config.init_from): its parameters, its architecture and its tokenizer.

Optimizer state and step are new. Checkpoints of an adapter hold only the adapter, so such a run always needs the other
workdir. Any other run needs it only until its own first checkpoint.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data.examples import kinds
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

_WITH_CHAT = [name for name, kind in kinds.KINDS.items() if "template" in kind.fields]
_LEFT_OUT = {"template": "auto", "system": ""}  # how conversations are written, if a config doesn't say so


class _Taken(NamedTuple):
    """What a run takes from the other workdir: read there when the run begins, and from its own record later."""

    place: str  # config.init_from as the user wrote it
    step: str
    model: dict  # the block `model`
    tokenizer: ConfigDict  # the block `data.tokenizer`
    facts: dict  # the model's family (model_type), if it is known
    chat: dict[str, dict]  # kind of examples -> template and system text of its conversations, if they are known


def resolve(
    config: ConfigDict, workdir: Workdir | None, chosen: Iterable[str] = ()
) -> tuple[ConfigDict, Workdir | None]:
    """Fills in the architecture and the tokenizer that a config leaves to config.init_from.

    Fields that do not belong to the parameters (registry.RUNNING: dtype, remat, dropout, ...) stay as they are.

    Args:
      config: the config as the user gave it.
      workdir: that of the run; if it has a checkpoint, its record is used instead of the other workdir's. None: there
        is no run yet.
      chosen: fields that the user has set by flags, like 'model.num_layers'.

    Returns:
      (the completed config, the workdir of config.init_from); (config, None) if config.init_from is empty.

    Raises:
      ConfigError: config.init_from is empty but an adapter needs it, or a chosen field contradicts it.
    """
    run = workdir if workdir is not None and workdirs.begun(workdir.path) else None  # if it has begun
    if run:
        _refuse_another(config, run)
    if not config.init_from:
        if models.tuning(config).method:
            raise ConfigError(
                f"config.adapt.method {config.adapt.method} trains over an existing model: set config.init_from to "
                "its workdir"
            )
        return config, None
    source = Workdir(Path(config.init_from).absolute())
    if run and run.tuning.method:
        source = run.base  # still needed, so a missing one is an error now
    taken = _recorded(run, config) if run else _found(source, config)
    own = {*RUNNING}
    # A head for labels depends on the data; `create` loads the source's head if it fits.
    if models.objective(config).head(config.data):
        own |= {"head", "num_labels"}
    _refuse_contradictions(config, taken.model, [name for name in chosen if name.removeprefix("model.") not in own])
    config = _with(config, taken, own)
    if not run or run.tuning.method:
        _keep_form(config, source)
    return config, source


def _with(config: ConfigDict, taken: _Taken, own: Set[str]) -> ConfigDict:
    """Returns the config with what is taken; fields of the model that `own` names stay as they are."""
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
        for name, settings in taken.chat.items():
            if _written(config.data[name]) == _LEFT_OUT:
                config.data[name].update(settings)
    return config


def _found(source: Workdir, config: ConfigDict) -> _Taken:
    """Returns what a new run takes from `source`."""
    restore.check_mergeable(source)
    if note := restore.quantization_note(source):
        print(f"warning: {note}; launch.convert --merge --merge_into=quantized avoids that", file=sys.stderr)
    with contextlib.closing(source.checkpoints()) as checkpoints:
        step = find_step(checkpoints, config.init_step)
    words = ConfigDict({"kind": "file", "path": str(Path(config.init_from) / "tokenizer.json")})
    chat, model = kinds.chat_settings(source.config.data), dataclasses.asdict(source.architecture)
    wanted = kinds.chat_settings(config.data)
    if chat and wanted and wanted not in (chat, _LEFT_OUT):
        print(
            f"warning: conversations are written with the template {wanted['template']} and the system text "
            f"{wanted['system']!r}, but the model of config.init_from {config.init_from} was tuned with "
            f"{chat['template']} and {chat['system']!r}; leave both fields out to keep its own",
            file=sys.stderr,
        )
    same = dict.fromkeys(_WITH_CHAT, chat) if chat else {}
    return _Taken(config.init_from, str(step), model, words, _facts(source), same)


def _recorded(workdir: Workdir, config: ConfigDict) -> _Taken:
    """Returns what a run that continues has recorded. A step that the user gives is kept, to be compared later."""
    there = workdir.config
    step = config.init_step if config.init_step.isdecimal() else there.init_step
    chat = {name: _written(there.data[name]) for name in _WITH_CHAT}
    return _Taken(there.init_from, step, there.model.to_dict(), there.data.tokenizer, _facts(workdir), chat)


def _keep_form(config: ConfigDict, source: Workdir) -> None:
    """Sets config.adapt.base to the form of the weights in the other workdir, if those are quantized.

    The default, `float`, means weights as they are there.
    """
    form, tuning = source.compression, models.tuning(config)
    if form is None:
        return
    if tuning.method is None:
        raise ConfigError(
            f"config.init_from {config.init_from} holds weights in {form.kind}, which can't train: train an adapter "
            "over them (configs/lora.py), or begin with the float model that they were made from"
        )
    there, wanted = models.base_fields(form), models.base_fields(tuning.quantization)
    if wanted and wanted != there:
        raise ConfigError(
            f"config.init_from {config.init_from} holds weights in another form than config.adapt asks for: {there} "
            f"there, {wanted} now; set config.adapt.base to float (which keeps their form), or begin with the float "
            "model that they were made from"
        )
    with config.unlocked():
        config.adapt.update(there)


def _written(block: ConfigDict) -> dict[str, str]:
    """Returns how the conversations of a kind of examples are written."""
    return {name: block[name] for name in _LEFT_OUT}


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
    """Raises a ConfigError if a field in `chosen` has another value than the model that config.init_from names."""
    of_the_source = flat({"model": model})
    lines = []
    for name in chosen:
        value = config
        for part in name.split("."):
            value = value[part]
        if name.startswith("data.tokenizer."):
            lines.append(f"config.{name}: the tokenizer comes with the parameters")
        elif name.startswith("model."):
            there = of_the_source.get(name)
            if json.dumps(there) != json.dumps(value):  # so that a tuple equals a list
                lines.append(f"config.{name}: {there!r} there, {value!r} now")
    if lines:
        raise ConfigError(
            f"config.init_from {config.init_from} contradicts these flags; leave them out:\n  " + "\n  ".join(lines)
        )


def create(
    config: ConfigDict,
    source: Workdir | None,
    model_config: ModelConfig,
    tuning: Tuning,
    tx,
    resume: bool = False,
    labels: Mapping[str, Any] | None = None,
) -> tuple[state.TrainState, str | None]:
    """Creates the state that a run begins with: parameters of config.init_from or random ones, and a new optimizer.

    Args:
      config: the config that `resolve` completed.
      source: the workdir of config.init_from; None: the parameters are random.
      model_config: the architecture.
      tuning: which parameters train.
      tx: the optimizer.
      resume: whether a checkpoint will be loaded into the state. Then only arrays that it lacks (the base under an
        adapter) are real, and the rest are shapes.
      labels: the labels that a classifier learns (data/examples/labels.py).

    Returns:
      (state, content hash of the base); the hash is None if checkpoints will hold all parameters.
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
