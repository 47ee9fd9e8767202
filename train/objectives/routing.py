"""What routers of experts add to any objective's loss, and what they report."""

import jax

from model.experts.router import RouterStats
from train.losses import Loss


def with_routers(loss: Loss, router: RouterStats | None, balance_loss: float, router_z_loss: float) -> Loss:
    """The loss of a model with those of its routers; as it is where there are none.

    Args:
      balance_loss: weight of the loss that keeps the load of experts even, summed over layers (arXiv:2101.03961).
      router_z_loss: weight of the routers' mean squared logsumexp, summed over layers (arXiv:2202.08906).
    """
    if router is None:
        return loss
    balance, z = router.balance_loss().sum(), router.mean_z_loss().sum()
    # They are means over tokens already: times the weight, by which the step divides.
    total = loss.total + (balance_loss * balance + router_z_loss * z) * loss.weight
    figures = {"balance_loss": balance, "z_loss": z} | _loads(router)
    metrics = {f"experts/{name}": jax.lax.stop_gradient(value) * loss.weight for name, value in figures.items()}
    return Loss(total, loss.weight, loss.metrics | metrics)


def _loads(router: RouterStats) -> dict[str, jax.Array]:
    """How the choices of tokens fell on the experts [L, E] of each layer, as multiples of an even share, the largest
    of these, and the part of all choices that was dropped."""
    choices_L1 = router.load_E.sum(-1, keepdims=True) + 1e-9  # a batch may be all padding
    load_LE = router.load_E * router.load_E.shape[-1] / choices_L1
    return {
        "load": load_LE,
        "max_load": load_LE.max(),
        "dropped": router.dropped.sum() / choices_L1.sum(),
    }
