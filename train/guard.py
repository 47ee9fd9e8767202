"""Which updates are left out: those whose loss, gradient or result is not finite, and spikes of the loss or of the
gradient's norm.

A spike is more than `deviations` robust standard deviations (1.4826 times the median distance from the median, which of
normal numbers is the standard deviation) above the median of the last WINDOW updates that were made. The window is of
the training state, so a run that continues judges as one that was never stopped, and the step decides without waiting
for the host.

A level that stays is no spike: what is left out does not enter the window, but many in a row end the run, or roll it
back (train/loop.py).
"""

import jax
import jax.numpy as jnp

WINDOW = 64  # updates; before there are as many, nothing is a spike
REASONS = ("", "not finite", "loss spike", "gradient spike", "the update is not finite")
# A window of numbers that hardly differ (a small batch learnt by heart) must not make the next one a spike: deviations
# are at least 2 % of the loss, and a tenth of the logarithm of the norm.
_LEAST_OF_LOSS, _LEAST_OF_NORM = 0.02, 0.1


def empty() -> jax.Array:
    """A window [2, WINDOW] float32, of losses and logarithms of norms, the newest last; NaN: not yet."""
    return jnp.full((2, WINDOW), jnp.nan, jnp.float32)


def finite(params) -> jax.Array:
    """Whether every number of a tree is finite; of the parameters after an update, this judges the update too."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def judge(
    recent_2W: jax.Array, loss: jax.Array, norm: jax.Array, deviations: float, updated: jax.Array | bool = True
) -> tuple[jax.Array, jax.Array]:
    """(the place in REASONS of why this update is left out, 0: it is made; the window after it).

    Args:
      deviations: 0: only what is not finite is left out.
      updated: whether the parameters would be finite after it. A finite gradient does not promise that: a learning rate
        may be nan, or large enough to overflow.
    """
    number = jnp.isfinite(loss) & jnp.isfinite(norm)
    broken = jnp.where(number, jnp.where(updated, 0, 4), 1)
    if not deviations:
        return broken, recent_2W
    newest_2 = jnp.stack([loss, jnp.log(jnp.maximum(norm, 1e-30))]).astype(jnp.float32)
    median_2 = jnp.median(recent_2W, axis=1)
    distance_2 = jnp.median(jnp.abs(recent_2W - median_2[:, None]), axis=1)
    least_2 = jnp.stack([_LEAST_OF_LOSS * jnp.abs(median_2[0]), jnp.asarray(_LEAST_OF_NORM)])
    high_2 = newest_2 > median_2 + deviations * jnp.maximum(1.4826 * distance_2, least_2)  # never above NaN
    reason = jnp.where(broken > 0, broken, jnp.where(high_2[0], 2, jnp.where(high_2[1], 3, 0)))
    longer_2W = jnp.concatenate([recent_2W[:, 1:], newest_2[:, None]], axis=1)
    return reason, jnp.where(reason == 0, longer_2W, recent_2W)
