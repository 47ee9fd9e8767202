"""From a config's names to the objects of a run."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data.examples import kinds
from data.prepare import Prepared, prepare
from data.rows import augment, corrupt
from data.tokens import tokenizer
from launch.program.checking import checking
from launch.run import models, workdirs
from model import axes
from model.config import ModelConfig
from model.count import flops_per_token
from train.loop import Schedule
from train.objectives.objective import Objective
from train.optimizer import make_optimizer, schedule
from train.step import make_eval_step, make_train_step


def mesh(config: ConfigDict) -> jax.sharding.Mesh:
    with checking("config.mesh"):
        return axes.make_mesh(dict(config.mesh))


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
    prefix = models.prefix(config)
    return prepare(fields, fields.pop("dir"), encoder=config.model.architecture == "encoder_decoder", prefix=prefix)


def corruption(config: ConfigDict, prepared: Prepared) -> corrupt.Corruption | None:
    """What is done to packed rows of text before the model sees them, None for nothing."""
    if all(source.kind != kinds.TEXT for source in prepared.sources):
        return None
    return corrupt.make(config.data.corruption, tokenizer.load(prepared.tokenizer_path), prepared.seq_len)


def augmentation(config: ConfigDict, prepared: Prepared) -> augment.Augmentation | None:
    """What is done to examples that are trained on, None for nothing."""
    return augment.make(config.data.augment, tokenizer.load(prepared.tokenizer_path))


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


def steps(config: ConfigDict, tx, objective: Objective):
    """(train step, evaluation step), compiled at their first call."""
    train_step = make_train_step(objective, tx, accumulate=config.accumulate, seed=config.seed, spike=config.spike)
    return train_step, make_eval_step(objective)


def loop_schedule(config: ConfigDict) -> Schedule:
    return Schedule(**{field.name: config[field.name] for field in dataclasses.fields(Schedule)})
