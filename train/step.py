"""One optimizer step: accumulate, differentiate, clip, update; skip updates that are not finite or are spikes."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from model import axes
from model.adapt.lora import seeded
from model.adapt.tuning import without_adapters
from model.weights import replaced, trained
from train import guard
from train.losses import Loss
from train.optimizer import fetched, gradient_norm
from train.state import Critic, TrainState


def make_gradients(objective, *, accumulate: int = 1, seed: int = 0):
    """Returns a function (state, batch) -> (gradients by name, Loss). The gradients are those of the mean loss.

    Args:
      objective: (model, batch, key, **companions) -> Loss, see train/objectives/objective.py.
      accumulate: micro-batches per step. Totals and weights are summed over them and divided once, so the result equals
        that of one large batch, whatever weight each micro-batch has. Gradients are summed in float32 even if the
        parameters are bfloat16, because a bfloat16 sum would lose most of the later micro-batches.
      seed: the random key of a step is derived from the seed and the step number.
    """

    def total(params, state, batch, key):
        others = companions(objective, state.model, state.companions)
        model, critic = _replaced(state, params)
        if critic is not None:
            others["critic"] = critic
        loss = objective(seeded(model, key), batch, key, **others)
        return loss.total, loss

    def mean(params, state, batch, key):
        """Divides by the weight before differentiating, which saves a pass over all gradients."""
        sums, loss = total(params, state, batch, key)
        return sums / _at_least(jax.lax.stop_gradient(loss.weight)), loss

    def gradients(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = _trained(state)
        if accumulate == 1:
            return jax.grad(mean, has_aux=True)(params, state, batch, key)
        differentiate = functools.partial(jax.grad(total, has_aux=True), params, state)
        sums, loss = _accumulate(differentiate, params, _split(batch, accumulate), key)
        return jax.tree.map(lambda g, p: (g / _at_least(loss.weight)).astype(p.dtype), sums, params), loss

    return gradients


def make_train_step(
    objective,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    seed: int = 0,
    spike: float = 0.0,
    critic_tx: optax.GradientTransformation | None = None,
):
    """Returns the compiled step (state, batch) -> (state, metrics). It donates the state.

    The metrics are the objective's sums divided by its weight, `grad_norm` (before clipping), `weight`, `skipped` and
    `streak` (see TrainState), and `left_out`: the index in guard.REASONS of the reason why this update was skipped, 0
    if it was made.

    Args:
      objective, accumulate, seed: as in `make_gradients`.
      tx: the optimizer.
      spike: an update is skipped if it is more than this many deviations above the recent ones (guard.judge); 0 skips
        only updates that are not finite.
      critic_tx: the optimizer of the critic, for states with one. Each of the two clips its own gradients.
    """
    gradients = make_gradients(objective, accumulate=accumulate, seed=seed)

    def train_step(state: TrainState, batch):
        params = _trained(state)
        grads, loss = gradients(state, batch)
        norm = gradient_norm(grads)
        placed = [state.opt_state] if state.critic is None else [state.opt_state, state.critic.opt_state]
        old_states = fetched(placed)
        parts = zip((tx, critic_tx), _parts(grads), old_states, _parts(params), strict=False)
        found = [own.update(part_of_grads, old, of) for own, part_of_grads, old, of in parts]
        updates = _joined(*(update for update, _ in found))
        updated = optax.apply_updates(params, updates)
        mean_loss = loss.total / _at_least(loss.weight)
        reason, recent = guard.judge(state.recent, mean_loss, norm, spike, guard.finite(updated))
        bad = (reason > 0).astype(jnp.int32)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(reason == 0, n, o), new, old)
        opt_states = jax.tree.map(_home, keep([opt_state for _, opt_state in found], old_states), placed)
        model, critic = _replaced(state, keep(updated, params))
        new = TrainState(
            step=state.step + 1,
            model=model,
            opt_state=opt_states[0],
            skipped=state.skipped + bad,
            streak=(state.streak + 1) * bad,
            recent=recent,
            companions=state.companions,  # the state is donated, so passing these through copies nothing
            critic=None if critic is None else Critic(critic, opt_states[1]),
        )
        metrics = {name: value / _at_least(loss.weight) for name, value in loss.metrics.items()}
        metrics |= {"grad_norm": norm, "weight": loss.weight, "skipped": new.skipped, "streak": new.streak}
        metrics["left_out"] = reason
        return new, metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(objective):
    """Returns the compiled evaluation (model, batch, companions) -> Loss. Dropout is off.

    The Loss holds sums, which the caller adds up over batches. `model` and `companions` come from a TrainState; an
    objective that uses no companions can be called without them.
    """

    def eval_step(model, batch, beside=None):
        return objective(model, batch, None, **companions(objective, model, beside or {}))

    return jax.jit(eval_step)


def companions(objective, model, given: Mapping) -> dict:
    """Returns the companions that an objective asks for, by name.

    A companion that is not `given` is the model itself with its adapter turned off. It shares the frozen arrays, so it
    takes no memory.

    Raises:
      ValueError: a companion is not given, and the model is not a frozen base with an adapter.
    """
    names = [companion.name for companion in getattr(objective, "companions", ())]
    return {name: given[name] if name in given else without_adapters(model) for name in names}


_CRITIC = "critic/"  # names of the critic's parameters begin with this among those of the step


def _trained(state: TrainState) -> dict:
    """Returns all parameters that the step trains, by name."""
    own = trained(state.model)
    return own if state.critic is None else _joined(own, trained(state.critic.model))


def _joined(of_model: dict, of_critic: dict | None = None) -> dict:
    return of_model | {_CRITIC + name: leaf for name, leaf in (of_critic or {}).items()}


def _parts(by_name: dict) -> tuple[dict, dict]:
    """Returns what belongs to (the model, the critic), by their own names."""
    of_critic = {name.removeprefix(_CRITIC): leaf for name, leaf in by_name.items() if name.startswith(_CRITIC)}
    return {name: leaf for name, leaf in by_name.items() if not name.startswith(_CRITIC)}, of_critic


def _replaced(state: TrainState, params: dict) -> tuple:
    """Returns (the model, the critic or None) with these parameters."""
    of_model, of_critic = _parts(params)
    critic = None if state.critic is None else replaced(state.critic.model, of_critic)
    return replaced(state.model, of_model), critic


def _home(new, old):
    """Moves `new` to the memory that `old` is in: the host's if the optimizer state is offloaded, else the device's."""
    return jax.device_put(new, jax.typeof(old).memory_space)


def _at_least(weight):
    return jnp.maximum(weight, 1e-9)  # the weights of a batch may sum to 0


def _split(batch, n):
    """[B, ...] -> [n, B / n, ...]. Takes every n-th row, so each device splits its own rows and no row moves."""
    sharding = lambda a: axes.out("batch", *(None,) * a.ndim)
    cut = lambda a: jnp.reshape(a, (a.shape[0] // n, n, *a.shape[1:]), out_sharding=sharding(a))
    return jax.tree.map(lambda a: jnp.swapaxes(cut(a), 0, 1), batch)


def _accumulate(differentiate, params, micro_batches, key):
    def body(carry, micro):
        index, batch = micro
        more = differentiate(batch, jax.random.fold_in(key, index))
        return jax.tree.map(lambda total, m: total + m.astype(total.dtype), carry, more), None

    n = jax.tree.leaves(micro_batches)[0].shape[0]
    shapes = jax.eval_shape(differentiate, jax.tree.map(lambda a: a[0], micro_batches), key)
    (_, loss) = shapes
    zeros = (
        jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), loss),
    )
    (grads, loss), _ = jax.lax.scan(body, zeros, (jnp.arange(n), micro_batches))
    return grads, Loss(*loss)
