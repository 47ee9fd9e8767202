"""Learning-rate schedules and optax chains by name."""

import jax
import jax.numpy as jnp
import optax

from model import axes, patterns, weights
from model.config import ModelConfig
from model.roles import Role, role_of


def schedule(name: str, peak: float, steps: int, warmup: int, final: float = 0.1, decay: float = 0.2):
    """Learning rate by step: linear warm-up from 0, then `name`.

    Args:
      name: 'cosine': falls to final * peak at `steps` along half a cosine (arXiv:1608.03983). 'constant'. 'wsd'
        (warm-up, stable, decay; arXiv:2405.18392): constant, then linear to final * peak over the last `decay` share.
      steps: of the whole run, the warm-up included.

    Raises:
      ValueError: an unknown name, or a warm-up that is not shorter than the run.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"optimizer.warmup_steps is {warmup}, but the run has {steps} steps: make it less")
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
    # Step 0 already learns: a first update of size 0 would be a wasted batch.
    rise = lambda step: peak * (step + 1) / (warmup + 1)
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def gradient_norm(grads) -> jax.Array:
    """Global norm of the gradients, float32: in bfloat16 a sum of squares has three digits."""
    return optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), _without_corrections(grads)))


def _without_corrections(grads):
    """Zeros for what the correction biases of routers have in place of a gradient: counts of tokens (router.py)."""
    zeros = lambda g: jax.tree.map(jnp.zeros_like, g) if _is_correction(g) else g
    return jax.tree.map(zeros, grads, is_leaf=weights.is_variable)


def _is_correction(leaf) -> bool:
    return weights.is_variable(leaf) and role_of(leaf) is Role.CORRECTION


def _corrected(chain: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    """`chain` for all parameters but the correction biases of routers, which move by `rate` against an uneven load."""

    def update(grads, state, params):
        updates, state = chain.update(_without_corrections(grads), state, params)
        move = lambda u, g: jax.tree.map(lambda a: -rate * jnp.sign(a), g) if _is_correction(g) else u
        return jax.tree.map(move, updates, grads, is_leaf=weights.is_variable), state

    return optax.GradientTransformation(chain.init, update)


def _scaled_by_pattern(model: ModelConfig, rates) -> optax.GradientTransformation:
    """Updates times the factor of their parameter, or of each layer's in an array of several."""

    def scale(path, u):
        (factors,) = patterns.by_layer(model, [weights.name(path)], rates, "optimizer.rates").values()
        factors = jnp.asarray(factors, u.dtype)
        return u * (factors.reshape(-1, *(1,) * (u.ndim - 1)) if len(factors) > 1 else factors[0])

    return optax.stateless(lambda updates, params: jax.tree.map_with_path(scale, updates))


def _decayed(chain: optax.GradientTransformation, rate, o, mask) -> optax.GradientTransformation:
    """`chain`, which has no weight decay of its own, with one that is multiplied by the learning rate as in AdamW. The
    count of updates is that of `chain`, so that the state stays as it is without decay."""

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
        # One learning rate fits both: updates have Adam's root mean square (arXiv:2502.16982).
        consistent_rms=0.2,
        muon_weight_dimension_numbers=muon_dims,
    )
    # optax applies the mask to the matrices alone, so the parameters that Adam updates would decay without it.
    return _decayed(optax.GradientTransformation(muon.init, _compiler_sharded(muon.update)), rate, o, mask)


def muon_dims(params):
    """Of each array its input and output dims, if it is a matrix of a block or a stack of them; None: Adam updates it
    (tables, norms, biases, routers, heads, factors of low rank)."""

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
    """Let XLA choose shardings inside `update`, which multiplies and reshapes without naming any."""

    def wrapped(grads, state, params):
        if not axes.has_mesh():
            return update(grads, state, params)
        out = jax.tree.map(lambda a: jax.typeof(a).sharding, (grads, state))
        return jax.sharding.auto_axes(update, out_sharding=out)(grads, state, params)

    return wrapped


# All decay alike: a step takes learning rate x weight decay x parameter away from what the mask selects. So adam and
# adamw are the same; optax's own decay in Adafactor, which is not multiplied by the learning rate, is not used.
OPTIMIZERS = {
    "adamw": _adamw,
    "adam": lambda rate, o, mask: _decayed(optax.adam(rate, o.beta1, o.beta2, o.epsilon), rate, o, mask),
    "sgd": lambda rate, o, mask: _decayed(optax.sgd(rate, momentum=o.beta1), rate, o, mask),
    "adafactor": lambda rate, o, mask: _decayed(optax.adafactor(rate), rate, o, mask),
    "lion": lambda rate, o, mask: optax.lion(rate, o.beta1, o.beta2, weight_decay=o.weight_decay, mask=mask),
    "muon": _muon,
}


# Fields of the block `optimizer` that have no meaning for an optimizer.
UNREAD = {
    "sgd": ("beta2", "epsilon"),
    "adafactor": ("beta1", "beta2", "epsilon"),
    "lion": ("epsilon",),
    "muon": ("epsilon",),
}


# Roles without weight decay where no patterns say it: these are no matrices, whose size decay limits.
UNDECAYED = (Role.NORM, Role.BIAS, Role.DISTANCE, Role.CORRECTION)


def make_optimizer(o, rate, model: ModelConfig) -> optax.GradientTransformation:
    """The chain that a config's `optimizer` block describes: clip by global norm, then the named optimizer.

    Args:
      o: name, beta1, beta2, epsilon, weight_decay, decay (patterns -> whether it decays; an empty list: all but
        UNDECAYED), rates (patterns -> factor of the learning rate, which layers of one array may have different ones
        of), clip_norm (0: no clipping), correction_rate (of the biases that balance experts, a step; arXiv:2412.19437,
        section 2.1.2; they never decay), offload (its state lies in the hosts' memory between steps).
      rate: learning rate by step.
      model: what the patterns are for (model/patterns.py).

    Raises:
      ValueError: an unknown name, or patterns that do not fit the model.
    """
    if o.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name is {o.name!r}; choose from {', '.join(OPTIMIZERS)}")
    decay = patterns.checked(o.decay, "optimizer.decay", bool)
    rates = patterns.checked(o.rates, "optimizer.rates", float)

    def mask(params):
        if not decay:
            by_role = lambda w: jax.tree.map(lambda _: role_of(w) not in UNDECAYED, w)
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
    """`chain` with a state that lies in the hosts' memory between steps: train/step.py fetches it and puts it back."""
    put = lambda a: jax.device_put(a, jax.memory.Space.Host) if a.ndim else a
    return optax.GradientTransformation(lambda params: jax.tree.map(put, chain.init(params)), chain.update)


def fetched(state):
    """In the devices' memory."""
    return jax.tree.map(lambda a: jax.device_put(a, jax.memory.Space.Device), state)
