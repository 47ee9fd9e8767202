"""TrainState: everything that the next step depends on beside the data, created already sharded."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Random keys are not in it: each step derives its own from the seed and `step`, so none can be lost."""

    step: jax.Array  # int32: batches consumed
    model: nnx.Module
    opt_state: object
    skipped: jax.Array  # int32: updates left out because loss or gradient was not finite
    streak: jax.Array  # int32: of these, the last ones in a row


def create(make_model, tx, seed: int) -> TrainState:
    """A new state on the mesh that is set: every array is born on the devices that keep it, none is whole on a host.

    Args:
      make_model: nnx.Rngs -> model.
      tx: optax transformation.
    """

    @jax.jit
    def init(key):
        model = make_model(nnx.Rngs(key))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, model, tx.init(model), zero, zero)

    return init(jax.random.key(seed))


def abstract(make_model, tx) -> TrainState:
    """The shapes, dtypes and shardings that `create` would make, without making them."""

    def init(key):
        model = make_model(nnx.Rngs(key))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, model, tx.init(model), zero, zero)

    return jax.eval_shape(init, jax.random.key(0))
