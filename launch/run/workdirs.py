"""The directory of a run: what it holds beside metrics and report.

config.json     the config as run (recorded.py)
tokenizer.json  its tokenizer (and special_tokens.json, of a published one)
data.json       which prepared data it reads
labels.json     of a classifier: names of its classes, and where it is asked (data/examples/labels.py)
checkpoints/    train/checkpoints/checkpoint.py
"""

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

from ml_collections import ConfigDict

from data import files
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
    """What a directory says of its run or model. Each file is read when it is first asked for, and then never again: a
    program makes one of these of a path and hands it on.

    Raises:
      ConfigError: at an attribute whose file is missing or damaged.
    """

    path: Path

    @functools.cached_property
    def record(self) -> dict:
        """What config.json says, by today's names, and nothing else."""
        return recorded.read(self.path)

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The config of the run, with the defaults of what config.json does not say."""
        return ConfigDict(defaults.completed(self.record))

    @functools.cached_property
    def tuning(self) -> Tuning:
        """What of its model trains, or over it."""
        return models.tuning(self.config)

    @functools.cached_property
    def compression(self) -> Settings | None:
        """How its checkpoint keeps the weights of linear layers, None: as floats."""
        with checking(f"{self.path / recorded.NAME}: compress"):
            return Settings.of(self.record["compress"]) if "compress" in self.record else None

    @functools.cached_property
    def labels(self) -> dict | None:
        """What labels.json says, None for a model that gives no labels."""
        path = self.path / LABELS
        return recorded.read_json(path) if path.exists() else None

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.load(self.path / "tokenizer.json")

    @functools.cached_property
    def architecture(self) -> ModelConfig:
        """That of the model, whose parameters are in the checkpoints."""
        config = self.config  # first: where there is none, it says that this is no workdir
        num_labels = 0 if self.labels is None else num_scores(self.labels)
        return models.model_config(config, self.tokenizer.vocab_size, num_labels)

    @functools.cached_property
    def base(self) -> "Workdir":
        """The workdir of the model under what was trained in this one."""
        base = Path(self.config.init_from).absolute()
        if not (base / recorded.NAME).exists():
            raise ConfigError(
                f"{self.path} holds what was trained over the model in {base}, which is gone: bring it back, or write "
                f"its new place into init_from of {self.path / recorded.NAME} (a content hash shows whether it is the "
                "same)"
            )
        return Workdir(base)

    @functools.cached_property
    def prepared(self) -> Prepared:
        """The data that the run reads."""
        path = self.path / "data.json"
        if not path.exists():
            raise ConfigError(f"{self.path} reads no data: its model was imported, or it holds no run of launch.train")
        return load(recorded.read_json(path)["directory"])

    def companions(self, step: str = "") -> dict[str, dict]:
        """Where the frozen models of a checkpoint's objective are from: workdir, step and content hash, by name."""
        with contextlib.closing(self.checkpoints()) as checkpoints:
            return checkpoints.loop(checkpoints.find(step)).get("companions", {})

    def checkpoints(self, base: str | None = None) -> Checkpoints:
        """Those that are finished, to be read and closed.

        Args:
          base: content hash of the model under what trains, where that alone was saved.
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
    """Of all folders that would be checkpoints, the newest first."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted((int(path.name) for path in folders if path.name.isdecimal() and path.is_dir()), reverse=True)


def begun(workdir: Path) -> bool:
    """Whether the directory holds a run with something to lose: one with a complete checkpoint."""
    return bool(steps(workdir)) and (workdir / recorded.NAME).exists()


def steps_logged(workdir: Path) -> int:
    """The last step that a run has logged in a directory that may hold no checkpoint."""
    if not (workdir / recorded.NAME).exists():
        return 0
    return max((row.get("step", 0) for row in metrics.read(workdir / "metrics.jsonl") if "loss" in row), default=0)


def check_new(workdir: Path) -> None:
    """Refuse a directory that can't be one, or that holds a run, or what was left of making one."""
    places.check(workdir)
    if (workdir / recorded.NAME).exists():
        raise ConfigError(f"{workdir} holds a run already; use a new directory")
    if (workdir / "checkpoints").exists():
        raise ConfigError(f"{workdir} holds checkpoints of something that was not finished; delete it, or use another")


def claim(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Keep with the run its config, its tokenizer, and which prepared data it reads."""
    workdir.mkdir(parents=True, exist_ok=True)
    files.replace(workdir / "data.json", json.dumps({"directory": str(prepared.directory)}) + "\n")
    _describe(workdir, config, tokenizers.load(prepared.tokenizer_path), prepared.labels)


def create(
    workdir: Path, record: dict, model, words: tokenizers.Tokenizer, labels: dict | None = None, base: str | None = None
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


def _describe(workdir: Path, config: ConfigDict, words: tokenizers.Tokenizer, labels: dict | None) -> None:
    """The config last and at once: where it is, the rest is there."""
    words.save(workdir / "tokenizer.json")
    if labels is not None:
        files.replace(workdir / LABELS, json.dumps(labels, ensure_ascii=False) + "\n")
    else:
        (workdir / LABELS).unlink(missing_ok=True)
    recorded.write(workdir, config)
