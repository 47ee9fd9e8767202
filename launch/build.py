"""From a config's names to objects: the visible tables, and every check that can be made before the expensive part."""

import contextlib
import dataclasses
import difflib
import functools
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data import corrupt, pipeline, tokenizer
from data.prepare import Prepared, load, prepare
from model import axes, families
from model.config import ModelConfig
from model.count import flops_per_token
from train import state as states
from train.checkpoint import Checkpoints
from train.evals.perplexity import evaluate
from train.evals.unigram import unigram
from train.loop import Schedule
from train.objectives.language import language
from train.optimizer import make_optimizer, schedule
from train.step import make_eval_step, make_train_step

OBJECTIVES = {"language": language}

CORRUPTION = {"decoder": "none", "encoder": "masked", "encoder_decoder": "spans"}  # what each architecture learns from

BASELINE_ROWS = 32  # rows a batch that the unigram baseline reads, whatever the run's

# What may differ between a run and its continuation; anything else would make it another run.
FREE_TO_CHANGE = ("mesh", "log_every", "eval_every", "eval_rows", "checkpoint_every", "keep_last", "keep_best")
FREE_TO_CHANGE += ("max_bad_steps", "profile_start", "profile_steps", "data.dir", "model.remat", "model.scan_unroll")
FREE_TO_CHANGE += ("model.attention",)


class ConfigError(Exception):
    """A config that cannot be run; the message says which field and what to do."""


@contextlib.contextmanager
def checking(what: str):
    """Turns the errors of objects that check themselves into ConfigError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what}: {error}") from error


def mesh(config: ConfigDict) -> jax.sharding.Mesh:
    with checking("config.mesh"):
        return axes.make_mesh(dict(config.mesh))


def model_config(config: ConfigDict, tokenizer_size: int = 0) -> ModelConfig:
    """The model's config, which must have room for the rows of the data."""
    model = architecture(config, tokenizer_size)
    if config.data.seq_len > model.max_length:
        raise ConfigError(
            f"config.data.seq_len {config.data.seq_len} is longer than config.model.max_length {model.max_length}"
        )
    return model


def architecture(config: ConfigDict, tokenizer_size: int = 0) -> ModelConfig:
    """The block `model` of a config; a vocabulary of 0 becomes the tokenizer's, rounded up so that it splits over a
    mesh."""
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
    with checking("config.model"):
        return ModelConfig(**fields)


def check(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Everything that can be known before data are prepared and programs compiled."""
    check_batch(config, mesh)
    model = model_config(config, tokenizer_size=1)
    with checking("config.mesh"):
        model.check_mesh(dict(mesh.shape))
    if model.head not in ("language_model", "masked"):
        raise ConfigError(
            f"config.model.head is {model.head!r}, which gives no scores of tokens; config.objective.name "
            f"{config.objective.name!r} needs them"
        )
    kind, fitting = config.data.corruption.kind, CORRUPTION[model.architecture]
    if kind != fitting:
        raise ConfigError(
            f"config.data.corruption.kind is {kind!r}, but config.model.architecture {model.architecture} learns from "
            f"{fitting!r}; change one of them"
        )
    optimizer(config)
    objective(config)


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Every device gets the same number of rows of every micro-batch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulate
    if config.batch_size < 1 or config.batch_size % parts:
        near = [n for n in (config.batch_size // parts * parts, (config.batch_size // parts + 1) * parts) if n]
        raise ConfigError(
            f"config.batch_size {config.batch_size} cannot be divided over data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']} x accumulate={config.accumulate}; the nearest that can: "
            + ", ".join(map(str, near))
        )


def objective(config: ConfigDict):
    settings = config.objective.to_dict()
    name = settings.pop("name")
    if name not in OBJECTIVES:
        raise ConfigError(f"config.objective.name is {name!r}; choose from {', '.join(OBJECTIVES)}")
    with checking("config.objective"):
        return OBJECTIVES[name](**settings)


def learning_rate(config: ConfigDict):
    o = config.optimizer
    with checking("config"):
        return schedule(o.schedule, o.learning_rate, config.steps, o.warmup_steps, o.final)


def optimizer(config: ConfigDict):
    with checking("config.optimizer"):
        return make_optimizer(config.optimizer, learning_rate(config))


def data(config: ConfigDict, workdir: Path) -> Prepared:
    """The prepared data of a config: found in config.data.dir, or made there.

    A run that has begun has a copy of its tokenizer, and needs the file no more that config.data.tokenizer names.
    """
    fields = config.data.to_dict()
    own = workdir / "tokenizer.json"
    if (fields.get("tokenizer") or {}).get("kind") == "file" and own.exists():
        fields["tokenizer"]["path"] = str(own)
    return prepare(fields, fields.pop("dir"))


def corruption(config: ConfigDict, prepared: Prepared) -> corrupt.Corruption | None:
    """What is done to packed rows before the model sees them, None for nothing."""
    return corrupt.make(config.data.get("corruption", {}), tokenizer.load(prepared.tokenizer_path), prepared.seq_len)


def flops(config: ConfigDict, model: ModelConfig, corruption: corrupt.Corruption | None) -> float:
    """Model FLOPs of training on one token of the data's rows."""
    spans = isinstance(corruption, corrupt.Spans)
    target_length = corruption.target_length(config.data.seq_len) if spans else 0
    return flops_per_token(model, config.data.seq_len, target_length=target_length)


def put(mesh: jax.sharding.Mesh):
    """host batch -> global batch: each process brings its own rows."""
    sharding = axes.batch_sharding(mesh)
    if jax.process_count() == 1:
        return lambda batch: jax.device_put(batch, sharding)
    return lambda batch: jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)


def steps(config: ConfigDict, tx):
    """(train step, evaluation step), compiled at their first call."""
    loss = objective(config)
    return make_train_step(loss, tx, accumulate=config.accumulate, seed=config.seed), make_eval_step(loss)


def evaluation(config: ConfigDict, prepared: Prepared, corrupted: corrupt.Corruption | None, eval_step, put):
    """(model, rows) -> figures of the held-out text; rows None: all of it."""
    tokens = sum(source.validation_tokens for source in prepared.sources)
    bytes_per_token = prepared.validation_bytes / max(tokens, 1) if corrupted is None else None

    @functools.cache
    def baseline(rows):
        """What token frequencies alone reach; every process counts all rows, so all agree."""
        train = pipeline.train_pipeline(prepared, BASELINE_ROWS, config.seed, corruption=corrupted)
        validation = pipeline.validation_batches(prepared, BASELINE_ROWS, limit_rows=rows, corruption=corrupted)
        with contextlib.closing(train):
            batches = iter(train.next, None)
            return {"validation/unigram": unigram(batches, validation, prepared.vocab_size)}

    def run(model, rows):
        share = (jax.process_index(), jax.process_count())
        batches = pipeline.validation_batches(prepared, config.batch_size, *share, rows, corrupted)
        return evaluate(eval_step, model, batches, put, bytes_per_token) | baseline(rows)

    return run


def notes(config: ConfigDict, model: ModelConfig) -> list[str]:
    """What a user would want to know of a run that can be made as it is."""
    if model.experts and not model.experts.correction and not config.objective.balance_loss:
        return ["note: nothing keeps the load of the experts even; config.objective.balance_loss=0.01 would"]
    return []


def loop_schedule(config: ConfigDict) -> Schedule:
    return Schedule(**{field.name: config[field.name] for field in dataclasses.fields(Schedule)})


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Refuse a directory that holds a run of another config, listing the fields that differ and may not."""
    path = workdir / "config.json"
    if not path.exists():
        return
    old, new = flat(_read_json(path)), flat(json.loads(config.to_json()))
    differing = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    lines = [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} now"
        for name in differing
        if not any(name == free or name.startswith(free + ".") for free in FREE_TO_CHANGE)
    ]
    if lines:
        raise ConfigError(
            f"{workdir} holds a run of another config; use a new --workdir, or the same values. Differing:\n  "
            + "\n  ".join(lines)
        )


def claim(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Keep with the run its config, its tokenizer, and which prepared data it reads."""
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer.load(prepared.tokenizer_path).save(workdir / "tokenizer.json")
    (workdir / "data.json").write_text(json.dumps({"directory": str(prepared.directory)}) + "\n")
    partial = workdir / "config.json.partial"
    partial.write_text(json.dumps(json.loads(config.to_json()), indent=2) + "\n")
    partial.replace(workdir / "config.json")


def recorded_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`."""
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run (no config.json); train one: python -m launch.train --workdir=...")
    return ConfigDict(_read_json(path))


def contents(workdir: Path) -> tuple[ModelConfig, tokenizer.Tokenizer]:
    """Architecture and tokenizer of the run in `workdir`, whose parameters are in its checkpoints."""
    config = recorded_config(workdir)
    words = tokenizer.load(workdir / "tokenizer.json")
    return architecture(config, words.vocab_size), words


def restore_for_inference(workdir, mesh: jax.sharding.Mesh | None = None):
    """(mesh, model, tokenizer) of the latest checkpoint in `workdir`, on a mesh or on one device."""
    workdir = Path(workdir).absolute()
    config, words = contents(workdir)
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        return mesh, restore_model(workdir, config), words


def restore_model(workdir: Path, config: ModelConfig):
    """The model of the latest checkpoint in `workdir`, on the mesh that is set."""
    with contextlib.closing(finished_checkpoints(workdir)) as checkpoints:
        return checkpoints.restore_model(states.abstract_model(lambda rngs: families.make(config, rngs)))


def finished_checkpoints(workdir: Path) -> Checkpoints:
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step is None:
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
