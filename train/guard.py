"""Decides which updates are skipped: those that are not finite, and spikes of the loss or the gradient norm.

A spike is more than `deviations` robust standard deviations above the median of the last WINDOW updates that were made.
The robust standard deviation is 1.4826 times the median absolute deviation (MAD), which equals the standard deviation
for normally distributed numbers. The window is part of the training state, so a continued run decides as if it had
never been stopped, and the decision is made on the device, without waiting for the host.

A skipped update does not enter the window. So a loss that rises to a new level and stays there is skipped again and
again, until too many skipped updates in a row end the run or roll it back (train/loop.py).
"""

import jax
import jax.numpy as jnp

WINDOW = 64  # updates; until the window is full, nothing counts as a spike
REASONS = ("", "not finite", "loss spike", "gradient spike", "the update is not finite")
# If the numbers in the window hardly differ (an overfitted small batch), the next one must not count as a spike. So one
# deviation is at least 2 % of the median loss, and at least 0.1 in the logarithm of the norm.
_LEAST_OF_LOSS, _LEAST_OF_NORM = 0.02, 0.1


def empty() -> jax.Array:
    """Returns an empty window, float32 [2, WINDOW], of losses and log norms, the newest last. NaN means no value."""
    return jnp.full((2, WINDOW), jnp.nan, jnp.float32)


def finite(params) -> jax.Array:
    """Returns whether every number in a tree is finite. For updated parameters this checks the update too."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def judge(
    recent_2W: jax.Array, loss: jax.Array, norm: jax.Array, deviations: float, updated: jax.Array | bool = True
) -> tuple[jax.Array, jax.Array]:
    """Returns (index in REASONS of why this update is skipped, or 0 if it is made; the window after this update).

    Args:
      recent_2W: the window, see `empty`.
      loss, norm: float32 scalars of this update: mean loss and gradient norm.
      deviations: the limit for spikes; 0 skips only updates that are not finite.
      updated: whether the updated parameters are finite. A finite gradient does not guarantee this: the learning rate
        may be NaN, or large enough for an overflow.
    """
    number = jnp.isfinite(loss) & jnp.isfinite(norm)
    broken = jnp.where(number, jnp.where(updated, 0, 4), 1)
    if not deviations:
        return broken, recent_2W
    newest_2 = jnp.stack([loss, jnp.log(jnp.maximum(norm, 1e-30))]).astype(jnp.float32)
    median_2 = jnp.median(recent_2W, axis=1)
    distance_2 = jnp.median(jnp.abs(recent_2W - median_2[:, None]), axis=1)
    least_2 = jnp.stack([_LEAST_OF_LOSS * jnp.abs(median_2[0]), jnp.asarray(_LEAST_OF_NORM)])
    # While the window still has NaN the median is NaN, and this comparison is false.
    high_2 = newest_2 > median_2 + deviations * jnp.maximum(1.4826 * distance_2, least_2)
    reason = jnp.where(broken > 0, broken, jnp.where(high_2[0], 2, jnp.where(high_2[1], 3, 0)))
    longer_2W = jnp.concatenate([recent_2W[:, 1:], newest_2[:, None]], axis=1)
    return reason, jnp.where(reason == 0, longer_2W, recent_2W)
