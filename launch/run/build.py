"""From a config's names to objects: the visible tables, and every check that can be made before the expensive part."""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data.examples import kinds
from data.prepare import Prepared, prepare
from data.rows import augment, corrupt
from data.tokens import tokenizer
from launch.program.checking import ConfigError, checking
from launch.run import ranges, workdirs
from launch.run.workdirs import architecture
from model import architectures, axes, weights
from model.compress.quantize import quantize
from model.config import ModelConfig
from model.count import flops_per_token
from model.interop import peft, registry
from model.interop.files.tensorfile import CheckpointFolderError
from train.loop import Schedule
from train.objectives.classification import labels
from train.objectives.language import language
from train.optimizer import UNREAD, fetched, make_optimizer, schedule
from train.step import make_eval_step, make_train_step

OBJECTIVES = {"language": language, "labels": labels}

CORRUPTION = {"decoder": "none", "encoder": "masked", "encoder_decoder": "spans"}  # what each architecture learns from


def mesh(config: ConfigDict) -> jax.sharding.Mesh:
    with checking("config.mesh"):
        return axes.make_mesh(dict(config.mesh))


def model_config(config: ConfigDict, tokenizer_size: int = 0, num_labels: int = 0) -> ModelConfig:
    """The model's config, which must have room for the rows of the data."""
    model = architecture(config, tokenizer_size, num_labels)
    if config.data.seq_len > model.max_length:
        raise ConfigError(
            f"config.data.seq_len {config.data.seq_len} is longer than config.model.max_length {model.max_length}"
        )
    return model


def check(config: ConfigDict, mesh: jax.sharding.Mesh | None) -> None:
    """Everything that can be known before data are prepared and programs compiled; None for a mesh that is not here."""
    ranges.check(config)
    if mesh is not None:
        check_batch(config, mesh)
    model = model_config(config, tokenizer_size=1, num_labels=config.model.get("num_labels") or 1)
    if mesh is not None:
        with checking("config.mesh"):
            model.check_mesh(dict(mesh.shape))
    (_check_labels if config.objective.name == "labels" else _check_language)(config, model)
    _check_training(config, model)
    objective(config)


def _check_training(config: ConfigDict, model: ModelConfig) -> None:
    """What trains, and by which patterns, on shapes alone."""
    tuning, tx = workdirs.tuning(config), optimizer(config, model)

    def make(key):
        base = architectures.make(model, nnx.Rngs(key))
        return weights.trained(tuning.apply(quantize(base, tuning.quantization) if tuning.quantization else base, key))

    with checking("config.adapt, config.train_only"):
        params = jax.eval_shape(make, jax.random.key(0))
    with checking("config.optimizer"):
        jax.eval_shape(lambda params: tx.update(params, fetched(tx.init(params)), params), params)


def _check_language(config: ConfigDict, model: ModelConfig) -> None:
    if model.head not in ("language_model", "masked"):
        raise ConfigError(
            f"config.model.head is {model.head!r}, which gives no scores of tokens; config.objective.name "
            f"{config.objective.name!r} needs them"
        )
    if "labels" in source_kinds(config):
        raise ConfigError(
            f"config.data has labels, which config.objective.name {config.objective.name!r} can't learn; use "
            "--config=configs/classify.py"
        )
    examples = sorted(source_kinds(config) & {"chat", "pairs"})
    if examples and model.architecture == "encoder":
        raise ConfigError(
            f"config.data.sources of kind {' and '.join(examples)} need a decoder, which says the answers, but "
            "config.model.architecture is encoder"
        )
    kind, fitting = config.data.corruption.kind, CORRUPTION[model.architecture]
    if kind != fitting and kinds.TEXT in source_kinds(config):
        raise ConfigError(
            f"config.data.corruption.kind is {kind!r}, but config.model.architecture {model.architecture} learns from "
            f"{fitting!r}; change one of them"
        )


def _check_labels(config: ConfigDict, model: ModelConfig) -> None:
    others = sorted({kinds.kind_of(spec) for spec, _ in kinds.sources(config.data)} - {"labels"})
    if others:
        raise ConfigError(
            f"config.objective.name 'labels' learns from labels alone, and config.data has {', '.join(others)} too; "
            "take these out, or set config.data.format to 'labels' if that is what config.data.path holds"
        )
    kind = config.data.labels.kind
    fitting = "token" if kind == "token" else "sequence"
    if model.head != fitting:
        raise ConfigError(
            f"config.model.head is {model.head!r}, but labels of config.data.labels.kind {kind!r} need {fitting!r}; '' "
            "chooses it"
        )
    if kind == "number" and model.num_labels != 1:
        raise ConfigError(f"config.model.num_labels is {model.num_labels}; a number is one score: set it to 0 or 1")


def source_kinds(config: ConfigDict) -> set[str]:
    """Kinds of the sources that a run reads, by data/examples/kinds.py."""
    return {kinds.kind_of(spec) for spec, _ in kinds.sources(config.data)}


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Every device gets the same number of rows of every micro-batch, and of tokens of each row."""
    split = {axis: mesh.shape[axis] for axis in axes.spec("batch")[0]} | {"accumulate": config.accumulate}
    parts = math.prod(split.values())
    if config.batch_size < 1 or config.batch_size % parts:
        near = [n for n in (config.batch_size // parts * parts, (config.batch_size // parts + 1) * parts) if n]
        raise ConfigError(
            f"config.batch_size {config.batch_size} cannot be divided over "
            + " x ".join(f"{name}={size}" for name, size in split.items() if size > 1)
            + "; the nearest that can: "
            + ", ".join(map(str, near))
        )
    if config.model.pipeline_slots and config.batch_size // parts % config.model.pipeline_slots:
        raise ConfigError(
            f"config.model.pipeline_slots {config.model.pipeline_slots} does not divide the "
            f"{config.batch_size // parts} rows of a device in a micro-batch of the step"
        )
    halves = 2 * mesh.shape["context"]
    if halves > 2 and config.data.seq_len % halves:
        raise ConfigError(
            f"config.data.seq_len {config.data.seq_len} cannot be split over context={halves // 2}, each device having "
            f"two stretches of a row; the nearest that can: {-(-config.data.seq_len // halves) * halves}"
        )


def objective(config: ConfigDict, labels: Mapping | None = None):
    """`labels`: what is known of those that are learnt (Prepared.labels)."""
    settings = config.objective.to_dict()
    name = settings.pop("name")
    if name not in OBJECTIVES:
        raise ConfigError(f"config.objective.name is {name!r}; choose from {', '.join(OBJECTIVES)}")
    known = [field for field in inspect.signature(OBJECTIVES[name]).parameters if field != "names"]
    if unknown := [field for field in settings if field not in known]:
        raise ConfigError(
            f"config.objective.{unknown[0]} is no field of objective {name!r}, which has {', '.join(known)}; begin "
            "with a config of it (of labels configs/classify.py, or over a frozen model configs/classify.py:lora)"
        )
    if labels and "names" in labels:
        settings["names"] = labels["names"]
    with checking("config.objective"):
        return OBJECTIVES[name](**settings)


def learning_rate(config: ConfigDict):
    o = config.optimizer
    with checking("config"):
        return schedule(o.schedule, o.learning_rate, config.steps, o.warmup_steps, o.final)


def learning_rates(config: ConfigDict) -> np.ndarray:
    """Of each step, on the host, float32 [config.steps]: the schedule is computed on the device, and asked while a step
    runs would wait for its end."""
    return np.asarray(jax.vmap(learning_rate(config))(np.arange(config.steps)))


def optimizer(config: ConfigDict, model: ModelConfig):
    with checking("config.optimizer"):
        return make_optimizer(config.optimizer, learning_rate(config), model)


def data(config: ConfigDict, workdir: Path) -> Prepared:
    """The prepared data of a config: found in config.data.dir, or made there.

    A run that has begun has a copy of its tokenizer, and needs the file no more that config.data.tokenizer names.
    """
    fields = config.data.to_dict()
    own = workdir / "tokenizer.json"
    if (fields.get("tokenizer") or {}).get("kind") == "file" and workdirs.begun(workdir):
        fields["tokenizer"]["path"] = str(own)
    if (fields.get("labels") or {}).get("read") == "":
        fields["labels"]["read"] = "first" if config.model.architecture == "encoder" else "last"
    prefix = workdirs.prefix(config)
    return prepare(fields, fields.pop("dir"), encoder=config.model.architecture == "encoder_decoder", prefix=prefix)


def corruption(config: ConfigDict, prepared: Prepared) -> corrupt.Corruption | None:
    """What is done to packed rows of text before the model sees them, None for nothing."""
    if all(source.kind != kinds.TEXT for source in prepared.sources):
        return None
    return corrupt.make(config.data.get("corruption", {}), tokenizer.load(prepared.tokenizer_path), prepared.seq_len)


def augmentation(config: ConfigDict, prepared: Prepared) -> augment.Augmentation | None:
    """What is done to examples that are trained on, None for nothing."""
    return augment.make(config.data.get("augment", {}), tokenizer.load(prepared.tokenizer_path))


def flops(config: ConfigDict, model: ModelConfig, trains: dict, corruption: corrupt.Corruption | None) -> float:
    """Model FLOPs of training on one token of the data's rows, which are as long on both sides where they hold
    examples; `trains` as in count.flops_per_token."""
    spans = isinstance(corruption, corrupt.Spans)
    target_length = corruption.target_length(config.data.seq_len) if spans else config.data.seq_len
    return flops_per_token(model, config.data.seq_len, target_length=target_length, trains=trains)


def put(mesh: jax.sharding.Mesh):
    """host batch -> global batch: each process brings the rows of its parts of the batch (`batch_rows`)."""
    around = mesh.shape["context"]
    mine, parts = axes.batch_parts(mesh)

    def whole(a):
        if around > 1 and a.shape[1] % (2 * around) == 0:
            a = a[:, axes.zigzag(a.shape[1], around)]
        sharding = axes.batch_sharding(mesh, a.shape[1])
        if jax.process_count() == 1:
            return jax.device_put(a, sharding)
        size = len(a) // len(mine)
        rows = {part * size: slice(place * size, (place + 1) * size) for place, part in enumerate(mine)}
        read = lambda index: a[(rows[index[0].start or 0], *index[1:])]
        return jax.make_array_from_callback((parts * size, *a.shape[1:]), sharding, read)

    return lambda batch: jax.tree.map(whole, batch)


def batch_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray | None:
    """Numbers of the rows of a global batch that this process reads, None for all of them."""
    mine, parts = axes.batch_parts(mesh)
    return None if len(mine) == parts else np.arange(batch_size).reshape(parts, -1)[mine].reshape(-1)


def steps(config: ConfigDict, tx, labels: Mapping | None = None):
    """(train step, evaluation step), compiled at their first call; `labels` as in `objective`."""
    loss = objective(config, labels)
    train_step = make_train_step(loss, tx, accumulate=config.accumulate, seed=config.seed, spike=config.spike)
    return train_step, make_eval_step(loss)


def notes(config: ConfigDict, model: ModelConfig, trains: Iterable[str]) -> list[str]:
    """What a user would want to know of a run that can be made as it is.

    Args:
      trains: names of what trains.
    """
    found, trains = [], list(trains)
    if not config.checkpoint_every:
        but = " but the best evaluations" if config.early_stopping.patience else ""
        found.append(
            f"note: config.checkpoint_every is 0, so nothing is saved{but}, neither before the end nor at it; SIGTERM, "
            "Ctrl-C and an evaluation that fails still save"
        )
    if unread := UNREAD.get(config.optimizer.name):
        fields = ", ".join(f"config.optimizer.{field}" for field in unread)
        found.append(f"note: the optimizer {config.optimizer.name} does not read {fields}")
    routed = any(name.endswith("/router") for name in trains)
    if routed and not model.experts.correction and not config.objective.balance_loss:
        found.append("note: nothing keeps the load of the experts even; config.objective.balance_loss=0.01 would")
    with contextlib.suppress(CheckpointFolderError):  # of no family: nothing of it can be exported
        name = config.get("model_type") or registry.family_of(model)
        adapted = {path.removesuffix("/a") for path in trains if path.endswith("/a")}
        if why := peft.unreadable(model, registry.FAMILIES[name].table(model), adapted):
            found.append(f"note: {why}")
    return found + _rare_sources(config)


def _rare_sources(config: ConfigDict) -> list[str]:
    """A line for each source whose weight is too small for a row of it in this run."""
    rows, sources = config.steps * config.batch_size, kinds.sources(config.data)
    total = math.fsum(weight for _, weight in sources)
    return [
        f"note: {spec} has {weight:.6g} of the weights' sum of {total:.6g}, which is less than a row in the {rows:,} "
        "rows of this run"
        for spec, weight in sources
        if 0 < weight * rows < total
    ]


def loop_schedule(config: ConfigDict) -> Schedule:
    return Schedule(**{field.name: config[field.name] for field in dataclasses.fields(Schedule)})
