"""config.init_from: a run that begins with the parameters, the architecture and the tokenizer of another workdir.

Optimizer and step are new. An adapter's checkpoints hold the adapter alone, so it needs the other workdir for good; any
other run does not, once it has its first checkpoint.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from launch.program.checking import ConfigError, checking
from launch.run import restore, workdirs
from launch.run.early_stopping import find_step
from model import architectures
from model.adapt.tuning import Tuning
from model.config import ModelConfig
from model.interop.registry import RUNNING
from train import state


def resolve(config: ConfigDict, workdir: Path, chosen: Iterable[str] = ()) -> ConfigDict:
    """The config with architecture and tokenizer of config.init_from; without one, the config as it is.

    Fields that are of a run and not of its parameters (registry.RUNNING: dtype, remat, dropout, ...) stay as they are.

    Args:
      workdir: of the run; once it has a checkpoint, what it has recorded counts.
      chosen: fields that the user has set, 'model.num_layers': they must not contradict.

    Raises:
      ConfigError: there is nothing to begin with, though an adapter needs it, or a chosen field says something else.
    """
    begun = workdirs.recorded_config(workdir) if workdirs.begun(workdir) else None
    if begun is not None:
        _refuse_another(config, begun, workdir)
    if not config.get("init_from"):
        if workdirs.tuning(config).method:
            raise ConfigError(
                f"config.adapt.method {config.adapt.method} trains over a model that is there: set config.init_from to "
                "its workdir"
            )
        return config
    if begun is not None:
        record, fields, taken = begun, begun.model.to_dict(), _taken_by(begun, config)
        if workdirs.tuning(begun).method:
            workdirs.base_of(workdir)  # still needed
    else:
        source = Path(config.init_from).absolute()
        record, fields = workdirs.recorded_config(source), dataclasses.asdict(workdirs.contents(source)[0])
        taken = _taken_from(source, config)
    if config.objective.name == "labels":  # the head is of the labels; `create` takes the source's over where it fits
        fields |= {name: config.model.get(name, default) for name, default in (("head", ""), ("num_labels", 0))}
        chosen = [name for name in chosen if name not in ("model.head", "model.num_labels")]
    fields = {name: value for name, value in fields.items() if name not in RUNNING}
    _refuse_contradictions(config, fields, chosen)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        running = {name: value for name, value in config.model.items() if name in RUNNING}
        config.model = ConfigDict(running | fields)
        config.data.tokenizer = taken.pop("tokenizer")
        config.update(taken)
        if "model_type" in record:
            config.model_type = record.model_type
    return config


def create(
    config: ConfigDict, model_config: ModelConfig, tuning: Tuning, tx, resume: bool = False, labels: dict | None = None
) -> tuple[state.TrainState, str | None]:
    """(state that a run begins with, content hash of its base): parameters of config.init_from or random ones, and a
    new optimizer. There is a hash where only what trains over the base will be saved.

    Args:
      resume: the state will be read from a checkpoint: only what that does not hold is made, the rest are shapes.
      labels: of a classifier (data/examples/labels.py).
    """
    make_model = lambda rngs: tuning.apply(architectures.make(model_config, rngs), rngs.params())
    if resume and not tuning.method:
        return state.abstract(make_model, tx), None
    if not config.get("init_from"):
        return state.create(make_model, tx, config.seed), None
    model, base, new = restore.pretrained(
        _source(config), model_config, config.seed, labels, tuning.quantization, config.get("init_step", "")
    )
    with checking("config"):
        model = restore.tuned(model, tuning, config.seed)
    if not resume:
        print(f"begins with the parameters of {config.init_from}" + (f"; new: {', '.join(new)}" if new else ""))
    return state.around(model, tx), base if tuning.method else None


def _source(config: ConfigDict) -> Path:
    return Path(config.init_from).absolute()


def _taken_from(source: Path, config: ConfigDict) -> dict:
    """Fields that say what a new run begins with."""
    restore.check_mergeable(source)
    if note := restore.quantization_note(source):
        print(
            f"warning: {note}; launch.convert --merge --merge_into=quantized makes a workdir of that", file=sys.stderr
        )
    with contextlib.closing(workdirs.finished_checkpoints(source)) as checkpoints:
        step = find_step(checkpoints, config.get("init_step", ""))
    words = ConfigDict({"kind": "file", "path": str(Path(config.init_from) / "tokenizer.json")})
    return {"init_step": str(step), "tokenizer": words}


def _taken_by(begun: ConfigDict, config: ConfigDict) -> dict:
    """The same fields of a run that goes on; a step that the user names again must be the same."""
    step = config.get("init_step", "")
    step = step if step.isdecimal() else begun.get("init_step", "")
    return {"init_from": begun.init_from, "init_step": step, "tokenizer": begun.data.tokenizer}


def _refuse_another(config: ConfigDict, begun: ConfigDict, workdir: Path) -> None:
    there, now = begun.get("init_from", ""), config.get("init_from", "")
    if bool(there) != bool(now) or Path(there).absolute() != Path(now).absolute():
        raise ConfigError(
            f"{workdir} holds a run with config.init_from {there!r}, not {now!r}; use a new --workdir, or the same "
            "value"
        )


def _refuse_contradictions(config: ConfigDict, fields: dict, chosen: Iterable[str]) -> None:
    of_the_source = workdirs.flat({"model": fields})
    lines = []
    for name in chosen:
        value = config
        for part in name.split("."):
            value = value[part]
        if name.startswith("data.tokenizer."):
            lines.append(f"config.{name}: a run takes the tokenizer with the parameters")
        elif name.startswith("model.") and name.split(".")[1] not in RUNNING:
            there = of_the_source.get(name)
            if json.dumps(there) != json.dumps(value):  # where a tuple is a list
                lines.append(f"config.{name}: {there!r} there, {value!r} now")
    if lines:
        raise ConfigError(
            f"config.init_from {config.init_from} says otherwise; leave these flags out:\n  " + "\n  ".join(lines)
        )
