"""Causal language modelling: predict each next token of a document."""

from train.losses import Loss, cross_entropy


def next_token(z_loss: float = 0.0, label_smoothing: float = 0.0):
    """The objective (model, batch, key) -> Loss over data.batch rows; `loss` is nats a token, unsmoothed."""

    def objective(model, batch, key) -> Loss:
        hidden = model(batch["tokens"], batch["segment_ids"], batch["positions"], key=key)
        output = model.output(hidden.x_BTD)
        loss = cross_entropy(output, batch["targets"], batch["weights"], z_loss=z_loss, label_smoothing=label_smoothing)
        metrics = {"loss": loss.cross_entropy}
        if z_loss:
            metrics["z_loss"] = loss.z_loss
        return Loss(loss.total, batch["weights"].sum(), metrics)

    return objective
