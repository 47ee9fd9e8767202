"""TrainState: everything besides the data that the next step depends on. It is created already sharded."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.weights import replaced, trained, variables
from train import guard


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Critic:
    """A model of values that trains beside the policy. It is saved with the training state, not with the model."""

    model: nnx.Module
    opt_state: object  # as in TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """The state of training.

    It holds no random keys: each step derives its own key from the seed and `step`, so no key can be lost or reused.
    """

    step: jax.Array  # int32: batches consumed
    model: nnx.Module
    opt_state: object  # the optimizer's state of the trained parameters (weights.trained), by name
    skipped: jax.Array  # int32: updates skipped so far (guard.py)
    streak: jax.Array  # int32: updates skipped in a row, up to the last step
    recent: jax.Array  # float32 [2, WINDOW]: the losses and norms that updates are judged by (guard.py)
    # Frozen models that the objective uses, by name (train/objectives/objective.py). They are sharded like any model;
    # they are not differentiated, not updated and not saved.
    companions: dict[str, nnx.Module] = dataclasses.field(default_factory=dict)
    critic: Critic | None = None


def create(make_model, tx, seed: int) -> TrainState:
    """Returns a new state on the current mesh.

    Every array is created directly on the devices that keep it, as shards, and never lies whole on a host. So a model
    may be larger than the memory of a host or of one device.

    Args:
      make_model: nnx.Rngs -> model.
      tx: optax transformation.
      seed: of the random initial parameters.
    """
    return jax.jit(lambda key: _new(make_model, tx, key))(jax.random.key(seed))


def around(model: nnx.Module, tx) -> TrainState:
    """Returns a new state with the parameters of `model`, whose arrays are donated."""
    return jax.jit(lambda model: _around(model, tx), donate_argnums=0)(model)


def beside(state: TrainState, companions: Mapping[str, nnx.Module]) -> TrainState:
    """Returns the state with these frozen models as its companions.

    Raises:
      ValueError: a companion has a parameter that would train.
    """
    for name, model in companions.items():
        if found := list(trained(model)):
            raise ValueError(f"the companion {name!r} is not frozen: its parameter {found[0]} would train")
    return dataclasses.replace(state, companions=dict(companions))


def made(make_model, seed: int) -> nnx.Module:
    """Returns a new model on the current mesh, with random parameters."""
    return jax.jit(lambda key: make_model(nnx.Rngs(key)))(jax.random.key(seed))


def critic(model: nnx.Module, tx) -> Critic:
    """Returns a critic with the parameters of `model`, whose arrays are donated, and a new optimizer state."""
    return jax.jit(lambda model: Critic(model, tx.init(trained(model))), donate_argnums=0)(model)


def abstract_critic(make_model, tx) -> Critic:
    """Like `abstract`, of a critic."""
    return _placed(lambda key: (lambda model: Critic(model, tx.init(trained(model))))(make_model(nnx.Rngs(key))))


def completed(make_model, seed: int, found: dict[str, Any]) -> tuple[nnx.Module, list[str]]:
    """Returns a model with the parameters `found`, the others newly initialized, and the names of the new ones.

    Args:
      make_model: nnx.Rngs -> model.
      seed: of the new parameters.
      found: nnx.Variable or model.weights.Weight by name.
    """
    target = abstract_model(make_model)
    new = [name for name in variables(target) if name not in found]
    draw = lambda key: {name: leaf for name, leaf in variables(make_model(nnx.Rngs(key))).items() if name in new}
    return replaced(target, found | (jax.jit(draw)(jax.random.key(seed)) if new else {})), new


def abstract(make_model, tx) -> TrainState:
    """Returns the shapes, dtypes and shardings of what `create` would return, without allocating it.

    A checkpoint is restored into this.
    """
    return _placed(lambda key: _new(make_model, tx, key))


def abstract_model(make_model) -> nnx.Module:
    """Like `abstract`, but of the model alone."""
    return _placed(lambda key: make_model(nnx.Rngs(key)))


def _new(make_model, tx, key) -> TrainState:
    return _around(make_model(nnx.Rngs(key)), tx)


def _around(model: nnx.Module, tx) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, model, tx.init(trained(model)), zero, zero, guard.empty())


def _placed(make):
    """Returns the shapes, dtypes and shardings of `make(key)`."""
    key = jax.eval_shape(lambda: jax.random.key(0))  # abstract: the mesh may be of devices that are absent or abstract
    mesh = jax.sharding.get_mesh()
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    shapes = jax.eval_shape(make, key)
    made = jax.jit(make).trace(key).jaxpr.out_avals  # eval_shape's results lack the memory space

    def place(s, aval):
        spec = jax.sharding.PartitionSpec() if s.sharding is None else s.sharding.spec  # a constant has no sharding
        where = jax.NamedSharding(mesh, spec)
        if aval.memory_space == jax.memory.Space.Host:
            where = where.with_memory_kind("pinned_host")
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)

    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten(map(place, leaves, made))
