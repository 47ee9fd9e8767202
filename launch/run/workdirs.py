"""Reads and writes the directory of a run. Besides metrics and the report, it holds:

config.json     the config of the run (recorded.py)
tokenizer.json  its tokenizer (and special_tokens.json, if it is a published one)
data.json       the folder of the prepared data that it reads, and a hash of the prompts of config.safety
labels.json     for classifiers: the names of the classes, and the position that is scored (data/examples/labels.py)
checkpoints/    see train/checkpoints/checkpoint.py
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data import files
from data.examples import kinds
from data.examples.judged import harm_prompts
from data.examples.labels import num_scores
from data.prepare import Prepared, load
from data.tokens import tokenizer as tokenizers
from launch.program.checking import ConfigError, checking
from launch.run import defaults, models, places, recorded
from model.adapt.tuning import Tuning
from model.compress.quantize import Settings
from model.config import ModelConfig
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics

LABELS = "labels.json"


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The run or model in a directory. Each file is read once, when an attribute first needs it, so a program creates
    one Workdir per path and passes it on.

    Raises:
      ConfigError: by an attribute whose file is missing or damaged.
    """

    path: Path

    @functools.cached_property
    def record(self) -> dict:
        """The fields that config.json holds, under their current names and without defaults."""
        return recorded.read(self.path)

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The config of the run; fields that config.json lacks have their defaults."""
        return ConfigDict(defaults.completed(self.record))

    @functools.cached_property
    def tuning(self) -> Tuning:
        """Which parameters train, and with which adapter."""
        return models.tuning(self.config)

    @functools.cached_property
    def compression(self) -> Settings | None:
        """How the checkpoints store the weights of linear layers; None: as floats."""
        with checking(f"{self.path / recorded.NAME}: compress"):
            return Settings.of(self.record["compress"]) if "compress" in self.record else None

    @functools.cached_property
    def labels(self) -> dict | None:
        """The content of labels.json; None for a model that gives no labels."""
        path = self.path / LABELS
        return recorded.read_json(path) if path.exists() else None

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.load(self.path / "tokenizer.json")

    @functools.cached_property
    def architecture(self) -> ModelConfig:
        """The architecture of the model in the checkpoints."""
        config = self.config  # first: if it is missing, its error says that this is not a workdir
        num_labels = 0 if self.labels is None else num_scores(self.labels)
        return models.model_config(config, self.tokenizer.vocab_size, num_labels)

    @functools.cached_property
    def base(self) -> "Workdir":
        """The workdir of the base model that the adapter in this one was trained over."""
        base = Path(self.config.init_from).absolute()
        if not (base / recorded.NAME).exists():
            raise ConfigError(
                f"{self.path} holds parameters that were trained over the model in {base}, which is gone: bring it "
                f"back, or set init_from in {self.path / recorded.NAME} to its new place (a content hash shows whether "
                "it is the same)"
            )
        return Workdir(base)

    @functools.cached_property
    def prepared(self) -> Prepared:
        """The prepared data of the run."""
        path = self.path / "data.json"
        if not path.exists():
            raise ConfigError(f"{self.path} has no data: its model was imported, or was not trained by launch.train")
        return load(recorded.read_json(path)["directory"])

    def companions(self, step: str = "") -> dict[str, dict]:
        """Returns the origins, with content hashes, of the companions and the rewards that a checkpoint names."""
        if not models.objective(self.config).beside().companions and not kinds.asks(self.config.data):
            return {}  # opening the checkpoints again would read them again, to verify them
        with contextlib.closing(self.checkpoints()) as checkpoints:
            return checkpoints.loop(checkpoints.find(step)).get("companions", {})

    def checkpoints(self, base: str | None = None) -> Checkpoints:
        """Opens the finished checkpoints for reading; the caller closes them.

        Args:
          base: content hash of the base model, if the checkpoints hold only what was trained over it.

        Raises:
          ConfigError: there is no finished checkpoint.
        """
        metric = self.config.early_stopping.metric
        checkpoints = Checkpoints(self.path, metric=metric, base=base, reading=True)
        if checkpoints.latest_step is None:
            checkpoints.close()
            raise ConfigError(
                f"{self.path} holds no finished checkpoint yet; let the run reach config.checkpoint_every"
            )
        return checkpoints


def steps(workdir: Path) -> list[int]:
    """Returns the steps of all checkpoint folders, finished or not, newest first."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted((int(path.name) for path in folders if path.name.isdecimal() and path.is_dir()), reverse=True)


def begun(workdir: Path) -> bool:
    """Returns whether the directory holds a run with a checkpoint, which a new run must not overwrite."""
    return bool(steps(workdir)) and (workdir / recorded.NAME).exists()


def steps_logged(workdir: Path) -> int:
    """Returns the last step whose loss was logged in the directory, with or without a checkpoint; 0 if none was."""
    if not (workdir / recorded.NAME).exists():
        return 0
    return max((row.get("step", 0) for row in metrics.read(workdir / "metrics.jsonl") if "loss" in row), default=0)


def check_new(workdir: Path) -> None:
    """Checks that a new workdir can be created here.

    Raises:
      ConfigError: the path can't be used, or it holds a run or the rest of an interrupted program.
    """
    places.check(workdir)
    if (workdir / recorded.NAME).exists():
        raise ConfigError(f"{workdir} holds a run already; use a new directory")
    if (workdir / "checkpoints").exists():
        raise ConfigError(
            f"{workdir} holds checkpoints but no {recorded.NAME}, so it was not finished; delete it, or use another one"
        )


def safety_prompts(config: ConfigDict) -> str:
    """Returns a hash of the prompts that config.safety names; '' if it names none."""
    path = config.safety.prompts
    return harm_prompts.digest(harm_prompts.read(path)) if path else ""


def claim(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Writes the config, the tokenizer and the path of the prepared data of a new run to its workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    record = {"directory": str(prepared.directory)}
    if config.safety.prompts:
        record["safety_prompts"] = safety_prompts(config)
    files.replace(workdir / "data.json", json.dumps(record) + "\n")
    _describe(workdir, config, tokenizers.load(prepared.tokenizer_path), prepared.labels)


def create(
    workdir: Path,
    record: dict,
    model,
    words: tokenizers.Tokenizer,
    labels: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> None:
    """Writes a workdir for a model that no run trained here, such as an imported one.

    Args:
      workdir: the new directory.
      record: the fields of config.json.
      model: saved as checkpoint 0.
      words: its tokenizer.
      labels: the content of labels.json; None: the model gives no labels.
      base: content hash of the base model, to save only what trains over it; None: saves all parameters.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, base=base)
    checkpoints.save_model(0, model)
    checkpoints.close()
    _describe(workdir, ConfigDict(record), words, labels)


def _describe(workdir: Path, config: ConfigDict, words: tokenizers.Tokenizer, labels: Mapping[str, Any] | None) -> None:
    """Writes config.json last and atomically: if it exists, the other files do too."""
    words.save(workdir / "tokenizer.json")
    if labels is not None:
        files.replace(workdir / LABELS, json.dumps(labels, ensure_ascii=False) + "\n")
    else:
        (workdir / LABELS).unlink(missing_ok=True)
    recorded.write(workdir, config)
