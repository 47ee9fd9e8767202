"""Language modelling: predict each target token from what the model is shown.

What the targets are, the data say (data/rows/corrupt.py): the next tokens of a text for a decoder, hidden ones for an
encoder, stretches that were taken out for an encoder-decoder.
"""

from model.architectures import Source
from train.losses import Loss, cross_entropy
from train.objectives.routing import with_routers


def language(z_loss: float = 0.0, label_smoothing: float = 0.0, balance_loss: float = 0.0, router_z_loss: float = 0.0):
    """The objective (model, batch, key) -> Loss over data.batch rows; `loss` is nats a token, unsmoothed.

    Args:
      z_loss, label_smoothing: see losses.cross_entropy.
      balance_loss, router_z_loss: see routing.with_routers.
    """

    def objective(model, batch, key) -> Loss:
        rows = lambda prefix: [batch[prefix + name] for name in ("tokens", "segment_ids", "positions")]
        source = {"source": Source(*rows("encoder_"))} if "encoder_tokens" in batch else {}
        hidden = model(*rows(""), key=key, **source)
        output = model.output(hidden.x_BTD)
        loss = cross_entropy(output, batch["targets"], batch["weights"], z_loss=z_loss, label_smoothing=label_smoothing)
        metrics = {"loss": loss.cross_entropy}
        if z_loss:
            metrics["z_loss"] = loss.z_loss
        found = Loss(loss.total, batch["weights"].sum(), metrics)
        return with_routers(found, hidden.router, balance_loss, router_z_loss)

    return objective
