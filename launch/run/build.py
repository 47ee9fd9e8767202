"""Builds the objects of a run (mesh, data, optimizer, steps) from the names and numbers of its config."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data.examples import kinds
from data.prepare import Prepared, prepare
from data.rows import augment, corrupt
from data.tokens import tokenizer
from launch.program.checking import checking
from launch.run import models, workdirs
from model import axes, weights
from model.config import ModelConfig
from model.count import flops_per_token
from train.loop import Schedule
from train.objectives.objective import Objective
from train.optimizer import make_optimizer, schedule
from train.state import TrainState
from train.step import make_eval_step, make_train_step


def mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """Returns the device mesh of `config.mesh`."""
    with checking("config.mesh"):
        return axes.make_mesh(dict(config.mesh))


def learning_rate(config: ConfigDict):
    """Returns the schedule: a function from the step to the learning rate."""
    o = config.optimizer
    with checking("config"):
        return schedule(o.schedule, o.learning_rate, config.steps, o.warmup_steps, o.final)


def learning_rates(config: ConfigDict) -> np.ndarray:
    """Returns the learning rate of each step as a host array, float32 [config.steps].

    The schedule itself is computed on the device; calling it while a step runs would wait for the end of the step.
    """
    return np.asarray(jax.vmap(learning_rate(config))(np.arange(config.steps)))


def optimizer(config: ConfigDict, model: ModelConfig):
    with checking("config.optimizer"):
        return make_optimizer(config.optimizer, learning_rate(config), model)


def data(config: ConfigDict, workdir: Path) -> Prepared:
    """Returns the prepared data of a config from config.data.dir, and prepares them if they are missing.

    A run with a checkpoint uses the copy of its tokenizer in `workdir`, so the file that config.data.tokenizer names
    may be gone.
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
    """Returns how packed rows of text are corrupted before the model sees them; None: not at all."""
    if all(source.kind != kinds.TEXT for source in prepared.sources):
        return None
    return corrupt.make(config.data.corruption, tokenizer.load(prepared.tokenizer_path), prepared.seq_len)


def augmentation(config: ConfigDict, prepared: Prepared) -> augment.Augmentation | None:
    """Returns how training examples are augmented; None: not at all."""
    return augment.make(config.data.augment, tokenizer.load(prepared.tokenizer_path))


def flops(config: ConfigDict, state: TrainState, corruption: corrupt.Corruption | None) -> float:
    """Returns the model FLOPs of training on one token of the data's rows, forward passes of companions included.

    Only span corruption makes the decoder's rows shorter than the encoder's: rows of examples have one length.

    Args:
      config: the whole config.
      state: the state of training, or its shapes.
      corruption: of the rows.
    """
    length = config.data.seq_len
    target_length = corruption.target_length(length) if isinstance(corruption, corrupt.Spans) else length
    model: Any = state.model
    found = flops_per_token(model.config, length, target_length=target_length, trains=weights.trained(model))
    for companion in models.objective(config).companions:  # one that the state lacks is the model without its adapter
        beside: Any = state.companions.get(companion.name, model)
        found += flops_per_token(beside.config, length, target_length=target_length, training=False)
    return found


def put(mesh: jax.sharding.Mesh):
    """Returns a function from a host batch to a global batch on the mesh.

    Each process passes its own rows of the batch (`batch_rows`). If rows are split over the axis `context`, their
    tokens are reordered for it (axes.zigzag).
    """
    around = mesh.shape["context"]
    mine, parts = axes.batch_parts(mesh)

    def whole(a):
        if dealt(mesh, a.shape[1]):
            a = a[:, axes.zigzag(a.shape[1], around)]
        sharding = axes.batch_sharding(mesh, a.shape[1])
        if jax.process_count() == 1:
            return jax.device_put(a, sharding)
        size = len(a) // len(mine)
        rows = {part * size: slice(place * size, (place + 1) * size) for place, part in enumerate(mine)}
        read = lambda index: a[(rows[index[0].start or 0], *index[1:])]
        return jax.make_array_from_callback((parts * size, *a.shape[1:]), sharding, read)

    return lambda batch: jax.tree.map(whole, batch)


def dealt(mesh: jax.sharding.Mesh, length: int) -> bool:
    """Returns whether `put` reorders the tokens of rows of this length."""
    around = mesh.shape["context"]
    return around > 1 and length % (2 * around) == 0


def in_order(mesh: jax.sharding.Mesh, a_BT: np.ndarray) -> np.ndarray:
    """Returns values of a batch's tokens [B, T] in the order that the rows had before `put`."""
    length = a_BT.shape[1]
    return a_BT[:, np.argsort(axes.zigzag(length, mesh.shape["context"]))] if dealt(mesh, length) else a_BT


def batch_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray | None:
    """Returns the indices of the rows of a global batch that this process reads; None: all of them."""
    mine, parts = axes.batch_parts(mesh)
    return None if len(mine) == parts else np.arange(batch_size).reshape(parts, -1)[mine].reshape(-1)


def steps(config: ConfigDict, tx, objective: Objective, critic_tx=None):
    """Returns (train step, evaluation step); each compiles when it is first called."""
    train_step = make_train_step(
        objective, tx, accumulate=config.accumulate, seed=config.seed, spike=config.spike, critic_tx=critic_tx
    )
    return train_step, make_eval_step(objective)


def loop_schedule(config: ConfigDict) -> Schedule:
    """Returns when the training loop logs, evaluates and saves."""
    return Schedule(**{field.name: config[field.name] for field in dataclasses.fields(Schedule)})
