"""Learning-rate schedules and optimizers by name, built from optax."""

import jax
import jax.numpy as jnp
import optax

from model import axes, patterns, weights
from model.config import ModelConfig
from model.roles import ELEMENTWISE, Role, role_of


def schedule(name: str, peak: float, steps: int, warmup: int, final: float = 0.1, decay: float = 0.2):
    """Returns a function step -> learning rate: a linear warm-up from 0 to `peak`, then the named schedule.

    Args:
      name: 'cosine' falls to final * peak at `steps` along half a cosine (arXiv:1608.03983).
        'constant' stays at `peak`.
        'wsd' (warm-up, stable, decay; arXiv:2405.18392) stays at `peak`, then falls linearly to final * peak.
      peak: learning rate after the warm-up.
      steps: steps of the whole run, including the warm-up.
      warmup: steps of the warm-up.
      final: learning rate at the end, as a fraction of `peak`.
      decay: fraction of `steps` in which 'wsd' falls.

    Raises:
      ValueError: the name is unknown, or the warm-up is not shorter than the run.
    """
    if not 0 <= warmup < steps:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup}, but the run has {steps} steps; make it smaller than that"
        )
    if name == "cosine":
        after = optax.cosine_decay_schedule(peak, steps - warmup, alpha=final)
    elif name == "constant":
        after = optax.constant_schedule(peak)
    elif name == "wsd":
        falling = max(1, min(round(steps * decay), steps - warmup))
        fall = optax.linear_schedule(peak, final * peak, falling)
        after = optax.join_schedules([optax.constant_schedule(peak), fall], [steps - warmup - falling])
    else:
        raise ValueError(f"optimizer.schedule is {name!r}; choose from cosine, constant, wsd")
    # The rate of step 0 is above 0, because a first update of size 0 would waste a batch.
    rise = lambda step: peak * (step + 1) / (warmup + 1)
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def gradient_norm(grads) -> jax.Array:
    """Returns the global norm of the gradients, in float32: a bfloat16 sum of squares would have three digits."""
    return optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), _without_corrections(grads)))


def _without_corrections(grads):
    """Sets the leaves of the routers' correction biases to 0. They hold token counts, not gradients (router.py)."""
    zeros = lambda g: jax.tree.map(jnp.zeros_like, g) if _is_correction(g) else g
    return jax.tree.map(zeros, grads, is_leaf=weights.is_variable)


def _is_correction(leaf) -> bool:
    return weights.is_variable(leaf) and role_of(leaf) is Role.CORRECTION


def _corrected(chain: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    """Wraps `chain` so that the routers' correction biases move by +-`rate` towards an even load instead."""

    def update(grads, state, params):
        updates, state = chain.update(_without_corrections(grads), state, params)
        move = lambda u, g: jax.tree.map(lambda a: -rate * jnp.sign(a), g) if _is_correction(g) else u
        return jax.tree.map(move, updates, grads, is_leaf=weights.is_variable), state

    return optax.GradientTransformation(chain.init, update)


def _scaled_by_pattern(model: ModelConfig, rates) -> optax.GradientTransformation:
    """Multiplies each update by the factor of its parameter. A stacked array has one factor per layer."""

    def scale(path, u):
        (factors,) = patterns.by_layer(model, [weights.name(path)], rates, "optimizer.rates").values()
        factors = jnp.asarray(factors, u.dtype)
        return u * (factors.reshape(-1, *(1,) * (u.ndim - 1)) if len(factors) > 1 else factors[0])

    return optax.stateless(lambda updates, params: jax.tree.map_with_path(scale, updates))


def _decayed(chain: optax.GradientTransformation, rate, o, mask) -> optax.GradientTransformation:
    """Adds decoupled weight decay to `chain`, multiplied by the learning rate as in AdamW.

    It reads the step count from the state of `chain`, so the optimizer state has the same form with and without decay.
    """

    def update(grads, state, params):
        count = optax.tree.get_all_with_path(state, "count")[0][1]
        updates, state = chain.update(grads, state, params)
        take = lambda decays, u, p: u - (o.weight_decay * rate(count) * p).astype(u.dtype) if decays else u
        return jax.tree.map(take, mask(params), updates, params), state

    return optax.GradientTransformation(chain.init, update) if o.weight_decay else chain


def _adamw(rate, o, mask):
    return optax.adamw(rate, o.beta1, o.beta2, o.epsilon, weight_decay=o.weight_decay, mask=mask)


def _muon(rate, o, mask):
    muon = optax.contrib.muon(
        rate,
        beta=o.beta1,
        adam_b1=o.beta1,
        adam_b2=o.beta2,
        # Scales Muon's updates to the RMS of Adam's, so that one learning rate fits both (arXiv:2502.16982).
        consistent_rms=0.2,
        muon_weight_dimension_numbers=muon_dims,
    )
    # optax's muon would apply the mask to the matrices only, and decay all parameters that Adam updates.
    return _decayed(optax.GradientTransformation(muon.init, _compiler_sharded(muon.update)), rate, o, mask)


def muon_dims(params):
    """Returns the input and output dims of each array that Muon updates, and None for those that Adam updates.

    Muon updates the matrices of blocks, also stacked over layers or experts. Adam updates embedding tables, norms,
    biases, routers, heads and low-rank factors.
    """

    def dims(w):
        if not weights.is_variable(w) or role_of(w) not in (Role.MATRIX, Role.EXPERT, Role.ADAPTER):
            return jax.tree.map(lambda _: None, w)
        names, inputs = w.get_metadata("out_sharding"), w.get_metadata("inputs")
        places = lambda wanted: tuple(place for place, name in enumerate(names) if wanted(name))
        into = places(lambda name: name in inputs)
        outputs = places(lambda name: name not in inputs + weights.STACKED)
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(into, outputs), w)

    return jax.tree.map(dims, params, is_leaf=weights.is_variable)


def _compiler_sharded(update):
    """Lets XLA choose the shardings inside `update`, because optax's matmuls and reshapes do not name any."""

    def wrapped(grads, state, params):
        if not axes.has_mesh():
            return update(grads, state, params)
        out = jax.tree.map(lambda a: jax.typeof(a).sharding, (grads, state))
        return jax.sharding.auto_axes(update, out_sharding=out)(grads, state, params)

    return wrapped


# Weight decay is the same for all: each step subtracts learning rate x weight decay x parameter from the parameters
# that the mask selects. So adam and adamw are the same. optax's own decay in Adafactor is not multiplied by the
# learning rate, so it is not used.
OPTIMIZERS = {
    "adamw": _adamw,
    "adam": lambda rate, o, mask: _decayed(optax.adam(rate, o.beta1, o.beta2, o.epsilon), rate, o, mask),
    "sgd": lambda rate, o, mask: _decayed(optax.sgd(rate, momentum=o.beta1), rate, o, mask),
    "adafactor": lambda rate, o, mask: _decayed(optax.adafactor(rate), rate, o, mask),
    "lion": lambda rate, o, mask: optax.lion(rate, o.beta1, o.beta2, weight_decay=o.weight_decay, mask=mask),
    "muon": _muon,
}


# Fields of config.optimizer that an optimizer does not use.
UNREAD = {
    "sgd": ("beta2", "epsilon"),
    "adafactor": ("beta1", "beta2", "epsilon"),
    "lion": ("epsilon",),
    "muon": ("epsilon",),
}


def make_optimizer(o, rate, model: ModelConfig) -> optax.GradientTransformation:
    """Returns the optimizer that config.optimizer describes: clip by global norm, then the named optimizer.

    Args:
      o: config.optimizer, with the fields
        name, beta1, beta2, epsilon, weight_decay;
        decay: (pattern, whether it decays) pairs; if empty, all roles but ELEMENTWISE decay,
        because decay is meant to limit the size of matrices;
        rates: (pattern, factor of the learning rate) pairs; layers in one stacked array may have different factors;
        clip_norm: 0 turns clipping off;
        correction_rate: how far the biases that balance experts move per step (arXiv:2412.19437, section 2.1.2). They
        never decay;
        offload: whether the optimizer's state lies in the hosts' memory between steps.
      rate: step -> learning rate.
      model: the architecture that the patterns refer to (model/patterns.py).

    Raises:
      ValueError: the name is unknown, or the patterns do not fit the model.
    """
    if o.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name is {o.name!r}; choose from {', '.join(OPTIMIZERS)}")
    decay = patterns.checked(o.decay, "optimizer.decay", bool)
    rates = patterns.checked(o.rates, "optimizer.rates", float)

    def mask(params):
        if not decay:
            by_role = lambda w: jax.tree.map(lambda _: role_of(w) not in ELEMENTWISE, w)
            return jax.tree.map(by_role, params, is_leaf=weights.is_variable)
        decays = patterns.by_array(model, weights.by_name(params), decay, "optimizer.decay")
        return jax.tree.map_with_path(lambda path, _: decays[weights.name(path)], params)

    chain = OPTIMIZERS[o.name](rate, o, mask)
    if any(factor != 1 for _, factor in rates):
        chain = optax.chain(chain, _scaled_by_pattern(model, rates))
    if o.clip_norm:
        chain = optax.chain(optax.clip_by_global_norm(o.clip_norm), chain)
    chain = _corrected(chain, o.correction_rate)
    return _offloaded(chain) if o.offload else chain


def _offloaded(chain: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the state of `chain` in the hosts' memory between steps. train/step.py fetches it and puts it back."""
    put = lambda a: jax.device_put(a, jax.memory.Space.Host) if a.ndim else a
    return optax.GradientTransformation(lambda params: jax.tree.map(put, chain.init(params)), chain.update)


def fetched(state):
    """Moves an offloaded optimizer state to the devices' memory."""
    return jax.tree.map(lambda a: jax.device_put(a, jax.memory.Space.Device), state)
