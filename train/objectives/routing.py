"""Losses and metrics of the expert routers. They are added to the loss of any objective."""

import jax

from model.experts.router import RouterStats
from train.losses import Loss

# The ranges of the two coefficients, for objectives that have them as settings (Objective.ranges).
RANGES = {"balance_loss": "float [0, inf)", "router_z_loss": "float [0, inf)"}


def with_routers(loss: Loss, router: RouterStats | None, balance_loss: float, router_z_loss: float) -> Loss:
    """Returns `loss` plus the losses of the routers, and their metrics as experts/NAME. Without routers: `loss`.

    Args:
      loss: the loss of the objective.
      router: statistics of all layers, or None for a dense model.
      balance_loss: coefficient of the load-balancing loss, summed over layers (arXiv:2101.03961).
      router_z_loss: coefficient of the routers' mean squared logsumexp, summed over layers (arXiv:2202.08906).
    """
    if router is None:
        return loss
    balance, z = router.balance_loss().sum(), router.mean_z_loss().sum()
    # These are means over tokens already, so they are multiplied by the weight that the step divides by.
    total = loss.total + (balance_loss * balance + router_z_loss * z) * loss.weight
    figures = {"balance_loss": balance, "z_loss": z} | _loads(router)
    metrics = {f"experts/{name}": jax.lax.stop_gradient(value) * loss.weight for name, value in figures.items()}
    return Loss(total, loss.weight, loss.metrics | metrics)


def _loads(router: RouterStats) -> dict[str, jax.Array]:
    """Returns the load of each expert [L, E] as a multiple of an even share, the largest load, and the share of token
    choices that were dropped."""
    choices_L1 = router.load_E.sum(-1, keepdims=True) + 1e-9  # a batch may be padding only
    load_LE = router.load_E * router.load_E.shape[-1] / choices_L1
    return {
        "load": load_LE,
        "max_load": load_LE.max(),
        "dropped": router.dropped.sum() / choices_L1.sum(),
    }
