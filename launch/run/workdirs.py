"""The directory of a run: what it holds beside metrics and report, and whether a config may continue it.

config.json     the config as run
tokenizer.json  its tokenizer (and special_tokens.json, of a published one)
data.json       which prepared data it reads
labels.json     of a classifier: names of its classes, and where it is asked (data/examples/labels.py)
checkpoints/    train/checkpoints/checkpoint.py
"""

import dataclasses
import difflib
import json
from pathlib import Path

from ml_collections import ConfigDict

from data import files
from data.batch import DataError
from data.examples.labels import num_scores
from data.prepare import Prepared, load
from data.tokens import tokenizer
from launch.program.checking import ConfigError, checking
from launch.run import places
from model import count, patterns
from model.adapt.prompt import Prompt
from model.adapt.tuning import Tuning
from model.adapt.tuning import make as make_tuning
from model.config import ModelConfig
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics

LABELS = "labels.json"

# How a run computes and when it saves, not what it learns or measures: trials of one sweep may differ in it.
SAME_FIGURES = ("mesh", "model.attention", "model.remat", "model.scan_unroll", "data.dir", "log_every", "profile_start")
SAME_FIGURES += ("model.context", "model.pipeline_slots", "model.pipeline_groups", "optimizer.offload")
SAME_FIGURES += ("profile_steps", "checkpoint_every", "keep_last", "keep_best", "verify_checkpoints")
# Fields that configs of older runs lack, with the value that says what those did.
ADDED = {"data.copies": "keep"}

# What may differ between a run and its continuation; anything else would make it another run.
FREE_TO_CHANGE = (*SAME_FIGURES, "eval_every", "grade.metrics", "early_stopping.patience")
FREE_TO_CHANGE += ("spike", "max_bad_steps", "on_bad_steps", "watchdog", "check_every")


def check(workdir: Path, config: ConfigDict) -> None:
    """Refuse a directory that holds a run of another config, listing the fields that differ and may not."""
    if steps(workdir) and not (workdir / "config.json").exists():
        raise ConfigError(
            f"{workdir} holds checkpoints but no config.json, so it cannot be told which run they belong to; bring "
            "that file back, or use a new --workdir"
        )
    going_on = begun(workdir)
    taken = 0 if going_on else _steps_taken(workdir)
    if not going_on and not taken:
        return
    old = ADDED | flat(_read_json(workdir / "config.json"))
    free = FREE_TO_CHANGE if _ranked_by_grades(old) else (*FREE_TO_CHANGE, "grade")
    if lines := differing(old, flat(json.loads(config.to_json())), free):
        what = f"{taken:,} steps, without a checkpoint, of a run" if taken else "a run"
        raise ConfigError(
            f"{workdir} holds {what} of another config; use a new --workdir, or the same values. Differing:\n  "
            + "\n  ".join(lines)
        )


def _ranked_by_grades(fields: dict) -> bool:
    """Whether the best evaluation is the one with the best answers."""
    graded = tuple(name.strip() for name in fields.get("grade.metrics", "").split(",") if name.strip())
    return fields.get("early_stopping.metric", "").rpartition("/")[2].startswith(graded)


def differing(old: dict, new: dict, free: tuple[str, ...]) -> list[str]:
    """A line for each field that differs and is neither one of `free` nor in such a block."""
    free = tuple(f"{name}." for name in free)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name) and not f"{name}.".startswith(free)]
    return [f"{name}: {old.get(name)!r} there, {new.get(name)!r} now" for name in names]


def claim(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Keep with the run its config, its tokenizer, and which prepared data it reads."""
    workdir.mkdir(parents=True, exist_ok=True)
    files.replace(workdir / "data.json", json.dumps({"directory": str(prepared.directory)}) + "\n")
    _describe(workdir, config, tokenizer.load(prepared.tokenizer_path), prepared.labels)


def _steps_taken(workdir: Path) -> int:
    """The last step that a run has logged in a directory that may hold no checkpoint."""
    if not (workdir / "config.json").exists():
        return 0
    return max((row.get("step", 0) for row in metrics.read(workdir / "metrics.jsonl") if "loss" in row), default=0)


def begun(workdir: Path) -> bool:
    """Whether the directory holds a run with something to lose: one with a complete checkpoint."""
    return bool(steps(workdir)) and (workdir / "config.json").exists()


def steps(workdir: Path) -> list[int]:
    """Of all folders that would be checkpoints, the newest first."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted((int(path.name) for path in folders if path.name.isdecimal() and path.is_dir()), reverse=True)


def check_data(workdir: Path, prepared: Prepared) -> None:
    """Refuse data that are not those with which the run in this directory began."""
    if not begun(workdir) or not (workdir / "data.json").exists():
        return
    there = Path(_read_json(workdir / "data.json")["directory"])
    try:
        old = {source.spec: source.content_hash for source in load(there).sources}
    except DataError:  # it is gone; the position in the stream tells whether these are the same
        return
    changed = [source.spec for source in prepared.sources if old.get(source.spec, "") != source.content_hash]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} has other content than when the run in {workdir} began ({there}); bring that back, "
            "or use a new --workdir"
        )


def check_new(workdir: Path) -> None:
    """Refuse a directory that can't be one, or that holds a run, or what was left of making one."""
    places.check(workdir)
    if (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds a run already; use a new directory")
    if (workdir / "checkpoints").exists():
        raise ConfigError(f"{workdir} holds checkpoints of something that was not finished; delete it, or use another")


def create(
    workdir: Path, record: dict, model, words: tokenizer.Tokenizer, labels: dict | None = None, base: str | None = None
) -> None:
    """A directory that holds a model and no run: `record` as its config.

    Args:
      labels: what labels.json says.
      base: content hash of the model under what trains, which alone is saved; None: all is.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, base=base)
    checkpoints.save_model(0, model)
    checkpoints.close()
    _describe(workdir, ConfigDict(record), words, labels)


def _describe(workdir: Path, config: ConfigDict, words: tokenizer.Tokenizer, labels: dict | None) -> None:
    """The config last and at once: where it is, the rest is there."""
    words.save(workdir / "tokenizer.json")
    if labels is not None:
        files.replace(workdir / LABELS, json.dumps(labels, ensure_ascii=False) + "\n")
    else:
        (workdir / LABELS).unlink(missing_ok=True)
    files.replace(workdir / "config.json", json.dumps(json.loads(config.to_json()), indent=2) + "\n")


def recorded_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`."""
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run (no config.json); train one: python -m launch.train --workdir=...")
    given = _read_json(path)
    if "model" not in given and "model_type" in given:
        raise ConfigError(
            f"{workdir} is a checkpoint folder of Hugging Face and no workdir; make one of it: python -m "
            f"launch.convert --from_hf={workdir} --workdir=..."
        )
    return ConfigDict(given)


def base_of(workdir: Path) -> Path:
    """The workdir of the model under what was trained in `workdir`."""
    base = Path(recorded_config(workdir).init_from).absolute()
    if not (base / "config.json").exists():
        raise ConfigError(
            f"{workdir} holds what was trained over the model in {base}, which is gone: bring it back, or write its "
            f"new place into init_from of {workdir / 'config.json'} (a content hash shows whether it is the same)"
        )
    return base


def contents(workdir: Path) -> tuple[ModelConfig, tokenizer.Tokenizer]:
    """Architecture and tokenizer of the run in `workdir`, whose parameters are in its checkpoints."""
    config = recorded_config(workdir)
    words, found = tokenizer.load(workdir / "tokenizer.json"), labels(workdir)
    return architecture(config, words.vocab_size, 0 if found is None else num_scores(found)), words


def labels(workdir: Path) -> dict | None:
    """What labels.json says, None for a model that gives no labels."""
    path = workdir / LABELS
    return _read_json(path) if path.exists() else None


def finished_checkpoints(workdir: Path, base: str | None = None) -> Checkpoints:
    metric = recorded_config(workdir).get("early_stopping", {}).get("metric", "validation/loss")
    checkpoints = Checkpoints(workdir, metric=metric, base=base, reading=True)
    if checkpoints.latest_step is None:
        checkpoints.close()
        raise ConfigError(f"{workdir} holds no finished checkpoint yet; let the run reach config.checkpoint_every")
    return checkpoints


def adopted(workdir: Path) -> Prepared:
    """The data that the run in `workdir` reads."""
    path = workdir / "data.json"
    if not path.exists():
        raise ConfigError(f"{workdir} reads no data: its model was imported, or it holds no run of launch.train")
    return load(_read_json(path)["directory"])


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}); restore it, or use a new --workdir") from error


def flat(tree: dict, prefix: str = "") -> dict:
    """Nested fields by their names with dots."""
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def architecture(config: ConfigDict, tokenizer_size: int = 0, num_labels: int = 0) -> ModelConfig:
    """The block `model` of a config.

    What it leaves to the data comes from there: a vocabulary of 0 is the tokenizer's, rounded up so that it splits over
    a mesh; 0 labels are as many as there are, and a head of '' is the one for their kind.
    """
    fields = config.model.to_dict()
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(f"config.model.{name} is no field of the model" + (f"; is it {near[0]}?" if near else ""))
    if not fields["vocab_size"] and tokenizer_size:
        fields["vocab_size"] = -(-tokenizer_size // 64) * 64
    if fields["vocab_size"] < tokenizer_size:
        raise ConfigError(
            f"config.model.vocab_size is {fields['vocab_size']}, but the tokenizer has {tokenizer_size} tokens; raise "
            "it, set it to 0 (the tokenizer's), or make the tokenizer smaller (config.data.tokenizer.vocab_size)"
        )
    if fields.get("head") == "":
        fields["head"] = "token" if config.data.labels.kind == "token" else "sequence"
    if fields.get("num_labels") == 0:
        fields["num_labels"] = num_labels
    if num_labels and fields.get("num_labels", num_labels) != num_labels:
        raise ConfigError(
            f"config.model.num_labels is {fields['num_labels']}, but the labels need {num_labels}; set it to 0 (as "
            "many as there are)"
        )
    with checking("config.model"):
        model = ModelConfig(**fields)
    parted = tuning(config)  # where the stacks are parted follows from what trains
    with checking("config"):
        return dataclasses.replace(model, cuts=parted.cuts(model, count.names(model)))


def prefix(config: ConfigDict) -> tuple[int, ...]:
    """The ids that an example begins with: of prompt tuning."""
    method = tuning(config).method
    return method.ids(config.model.vocab_size) if isinstance(method, Prompt) else ()


def tuning(config: ConfigDict, words: tokenizer.Tokenizer | None = None) -> Tuning:
    """What of the model trains: the blocks `adapt` and `train_only` of a config.

    Args:
      words: for an adapter that begins with a text.
    """
    fields = dict(config.get("adapt", {}))
    text = fields.pop("init_text", "")
    with checking("config"):
        train_only = patterns.checked(config.get("train_only", ()), "train_only", bool)
        if "targets" in fields:
            fields["targets"] = patterns.checked(fields["targets"], "adapt.targets", bool)
    with checking("config.adapt"):
        if text and words is not None:
            fields["init_ids"] = tuple(words.encode(text))
        return make_tuning(fields, train_only)
