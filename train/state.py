"""TrainState: everything that the next step depends on beside the data, created already sharded."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from model.weights import Weight, replaced, trained, variables
from train import guard


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Random keys are not in it: each step derives its own from the seed and `step`, so none can be lost."""

    step: jax.Array  # int32: batches consumed
    model: nnx.Module
    opt_state: object  # of what trains of the model (weights.trained), by name
    skipped: jax.Array  # int32: updates left out (guard.py)
    streak: jax.Array  # int32: of these, the last ones in a row
    recent: jax.Array  # float32: what updates are judged by (guard.py)
    # Frozen models beside the one that trains, by name, for the objective (train/objectives/objective.py). They are
    # sharded like any model; they are not differentiated, not updated and not saved.
    companions: dict[str, nnx.Module] = dataclasses.field(default_factory=dict)


def create(make_model, tx, seed: int) -> TrainState:
    """A new state on the mesh that is set: every array is born on the devices that keep it, none is whole on a host.

    Args:
      make_model: nnx.Rngs -> model.
      tx: optax transformation.
    """
    return jax.jit(lambda key: _new(make_model, tx, key))(jax.random.key(seed))


def around(model: nnx.Module, tx) -> TrainState:
    """A new state whose parameters are those of `model`, which is given away."""
    return jax.jit(lambda model: _around(model, tx), donate_argnums=0)(model)


def beside(state: TrainState, companions: Mapping[str, nnx.Module]) -> TrainState:
    """The state with these frozen models beside the one that trains.

    Raises:
      ValueError: a parameter of one of them would train.
    """
    for name, model in companions.items():
        if found := list(trained(model)):
            raise ValueError(f"the companion {name!r} is not frozen: {found[0]} would train")
    return dataclasses.replace(state, companions=dict(companions))


def completed(make_model, seed: int, found: dict[str, nnx.Variable | Weight]) -> tuple[nnx.Module, list[str]]:
    """(a model with the parameters `found` by name, the others newly drawn; names of these)."""
    target = abstract_model(make_model)
    new = [name for name in variables(target) if name not in found]
    draw = lambda key: {name: leaf for name, leaf in variables(make_model(nnx.Rngs(key))).items() if name in new}
    return replaced(target, found | (jax.jit(draw)(jax.random.key(seed)) if new else {})), new


def abstract(make_model, tx) -> TrainState:
    """Shapes, dtypes and shardings of what `create` would make, without making it: where a checkpoint is read into."""
    return _placed(lambda key: _new(make_model, tx, key))


def abstract_model(make_model) -> nnx.Module:
    """`abstract` of the model alone."""
    return _placed(lambda key: make_model(nnx.Rngs(key)))


def _new(make_model, tx, key) -> TrainState:
    return _around(make_model(nnx.Rngs(key)), tx)


def _around(model: nnx.Module, tx) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, model, tx.init(trained(model)), zero, zero, guard.empty())


def _placed(make):
    """What `make`, of a key, would make, and where."""
    key = jax.eval_shape(lambda: jax.random.key(0))  # the mesh may be of devices that are not here, or not even known
    mesh = jax.sharding.get_mesh()
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    shapes = jax.eval_shape(make, key)
    made = jax.jit(make).trace(key).jaxpr.out_avals  # these know the memory too

    def place(s, aval):
        spec = jax.sharding.PartitionSpec() if s.sharding is None else s.sharding.spec  # None: a constant
        where = jax.NamedSharding(mesh, spec)
        if aval.memory_space == jax.memory.Space.Host:
            where = where.with_memory_kind("pinned_host")
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)

    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten(map(place, leaves, made))
