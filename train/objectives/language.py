"""Language modelling: predict each target token from what the model is shown.

What the targets are, the data say (data/corrupt.py): the next tokens of a text for a decoder, hidden ones for an
encoder, stretches that were taken out for an encoder-decoder.
"""

import jax

from model.families import Source
from model.router import RouterStats
from train.losses import Loss, cross_entropy


def language(z_loss: float = 0.0, label_smoothing: float = 0.0, balance_loss: float = 0.0, router_z_loss: float = 0.0):
    """The objective (model, batch, key) -> Loss over data.batch rows; `loss` is nats a token, unsmoothed.

    Args:
      z_loss, label_smoothing: see losses.cross_entropy.
      balance_loss: weight of the loss that keeps the load of experts even, summed over layers (arXiv:2101.03961).
      router_z_loss: weight of the routers' mean squared logsumexp, summed over layers (arXiv:2202.08906).
    """

    def objective(model, batch, key) -> Loss:
        rows = lambda prefix: [batch[prefix + name] for name in ("tokens", "segment_ids", "positions")]
        source = {"source": Source(*rows("encoder_"))} if "encoder_tokens" in batch else {}
        hidden = model(*rows(""), key=key, **source)
        output = model.output(hidden.x_BTD)
        loss = cross_entropy(output, batch["targets"], batch["weights"], z_loss=z_loss, label_smoothing=label_smoothing)
        total, weight, metrics = loss.total, batch["weights"].sum(), {"loss": loss.cross_entropy}
        if z_loss:
            metrics["z_loss"] = loss.z_loss
        if hidden.router is not None:
            balance, z = hidden.router.balance_loss().sum(), hidden.router.mean_z_loss().sum()
            # They are means over tokens already: times the weight, by which the step divides.
            total += (balance_loss * balance + router_z_loss * z) * weight
            figures = {"balance_loss": balance, "z_loss": z} | _loads(hidden.router)
            metrics |= {f"experts/{name}": jax.lax.stop_gradient(value) * weight for name, value in figures.items()}
        return Loss(total, weight, metrics)

    return objective


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
