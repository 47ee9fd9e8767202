"""Labelling: a class, or a number, at the tokens where the data say that one is read.

Which tokens those are, and what their targets are, the data say (data/examples/labels.py): of a text its last token or
its first one, or the first token of each word. Scores are few a token, so they are computed for all of them, and
weighted.

Dims: B rows, T length, C classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from model import axes
from train.evals import entities
from train.losses import Loss
from train.objectives.routing import with_routers


def labels(
    label_smoothing: float = 0.0, balance_loss: float = 0.0, router_z_loss: float = 0.0, names: Sequence[str] = ()
):
    """The objective (model, batch, key) -> Loss over data.batch rows, for a model with a head for classes.

    Integer targets are classes: the loss is their cross-entropy, and `loss` nats a label, unsmoothed. Float targets are
    numbers, of a model with one score: the loss is the squared error. The sums that only an evaluation reads
    (train/evals/label_metrics.py) are there where there is no key.

    Args:
      label_smoothing: mass taken from the target and spread over the classes (arXiv:1512.00567).
      balance_loss, router_z_loss: see routing.with_routers.
      names: of the classes; where they are tags of words, entities are counted too (entities.py).
    """
    tags = entities.codes(names)

    def objective(model, batch, key) -> Loss:
        types = {"types_BT": batch["token_types"]} if "token_types" in batch else {}
        hidden = model(batch["tokens"], batch["segment_ids"], batch["positions"], key=key, **types)
        scores_BTC, weights_BT = model.classes(hidden.x_BTD), batch["weights"]
        if jnp.issubdtype(batch["targets"].dtype, jnp.floating):
            total, metrics = _numbers(scores_BTC, batch["targets"], weights_BT, key is None)
        else:
            total, metrics = _classes(scores_BTC, batch, label_smoothing, key is None, tags)
        loss = Loss(total, weights_BT.sum(), jax.lax.stop_gradient(metrics))
        return with_routers(loss, hidden.router, balance_loss, router_z_loss)

    return objective


def _classes(scores_BTC, batch, smoothing, evaluating, tags):
    targets_BT, weights_BT = batch["targets"], batch["weights"]
    hot = lambda ids_BT: (ids_BT[..., None] == jnp.arange(scores_BTC.shape[-1])).astype(jnp.float32)
    logs_BTC, true_BTC = jax.nn.log_softmax(scores_BTC), hot(targets_BT)
    nll_BT = -(true_BTC * logs_BTC).sum(-1)
    total = (weights_BT * ((1 - smoothing) * nll_BT - smoothing * logs_BTC.mean(-1))).sum()
    said_BTC = hot(scores_BTC.argmax(-1)) * weights_BT[..., None]
    metrics = {"loss": (weights_BT * nll_BT).sum(), "accuracy": (true_BTC * said_BTC).sum()}
    if evaluating:  # a row for each true class, a column for each that the model said
        metrics["confusion"] = jnp.einsum("BTC,BTK->CK", true_BTC, said_BTC, out_sharding=axes.out(None, None))
    if evaluating and tags is not None:
        metrics["entities"] = entities.counts(tags, true_BTC, said_BTC, weights_BT > 0, batch["positions"])
    return total, metrics


def _numbers(scores_BTC, targets_BT, weights_BT, evaluating):
    if scores_BTC.shape[-1] != 1:
        raise ValueError(f"targets are numbers, but the model gives {scores_BTC.shape[-1]} scores")
    said_BT = scores_BTC[..., 0]
    total = (weights_BT * jnp.square(said_BT - targets_BT)).sum()
    metrics = {"loss": total, "absolute_error": (weights_BT * jnp.abs(said_BT - targets_BT)).sum()}
    if evaluating:  # sums of x, y, xx, xy, yy: x is what was said, y what is true
        moments = jnp.stack([said_BT, targets_BT, said_BT**2, said_BT * targets_BT, targets_BT**2], -1)
        metrics["moments"] = (weights_BT[..., None] * moments).sum((0, 1))
    return total, metrics
