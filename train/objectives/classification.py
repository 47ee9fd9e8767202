"""Labelling: a class, or a number, at the tokens where the data say that one is read.

Which tokens those are, and what their targets are, the data say (data/examples/labels.py): of a text its last token or
its first one, or the first token of each word. Scores are few a token, so they are computed for all of them, and
weighted.

Dims: B rows, T length, C classes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from data.examples import kinds
from model import axes
from model.config import ModelConfig
from train.evals import entities, label_metrics
from train.losses import Loss
from train.objectives.objective import HeldOut, Objective
from train.objectives.routing import with_routers

# What the figures of an evaluation mean, for a person.
_MEANINGS = {
    "macro_f1": "mean F1 of the classes",
    "matthews": "Matthews correlation",
    "loss": "nats a label",
    "majority_accuracy": "accuracy of always saying the most frequent class of training",
    "mean_mse": "mean squared error of always saying the mean of training",
    "pearson": "correlation",
    "entity_f1": "F1 of whole entities, as CoNLL's script and seqeval count",
}


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy of integer targets, which are classes, or the squared error of float targets, which are numbers.

    `loss` is nats a label, unsmoothed, or the squared error. The sums that only an evaluation reads
    (train/evals/label_metrics.py) are there where there is no key.

    Args:
      label_smoothing: mass taken from the target and spread over the classes (arXiv:1512.00567).
      balance_loss, router_z_loss: see routing.with_routers.
      names: of the classes, in a run from the data; where they are tags of words, entities are counted too.
    """

    label_smoothing: float = 0.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0
    names: tuple[str, ...] = dataclasses.field(default=(), metadata={"from_data": True})

    heads: ClassVar = ("sequence", "token")
    predicts_tokens: ClassVar = False

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        others = sorted({kinds.kind_of(spec) for spec, _ in kinds.sources(data)} - {"labels"})
        if others:
            raise ValueError(
                f"config.objective.name 'labels' learns from labels alone, and config.data has {', '.join(others)} "
                "too; take these out, or set config.data.format to 'labels' if that is what config.data.path holds"
            )
        kind, fitting = data["labels"]["kind"], self.head(data)
        if model.head != fitting:
            raise ValueError(
                f"config.model.head is {model.head!r}, but labels of config.data.labels.kind {kind!r} need "
                f"{fitting!r}; '' chooses it"
            )
        if kind == "number" and model.num_labels != 1:
            raise ValueError(f"config.model.num_labels is {model.num_labels}; a number is one score: set it to 0 or 1")

    def head(self, data: Mapping[str, Any]) -> str:
        return "token" if data["labels"]["kind"] == "token" else "sequence"

    def about(self, labels: Mapping[str, Any] | None) -> "Classification":
        return dataclasses.replace(self, names=tuple((labels or {}).get("names", ())))

    def __call__(self, model, batch, key) -> Loss:
        types = {"types_BT": batch["token_types"]} if "token_types" in batch else {}
        hidden = model(batch["tokens"], batch["segment_ids"], batch["positions"], key=key, **types)
        scores_BTC, weights_BT = model.classes(hidden.x_BTD), batch["weights"]
        if jnp.issubdtype(batch["targets"].dtype, jnp.floating):
            total, metrics = _numbers(scores_BTC, batch["targets"], weights_BT, key is None)
        else:
            tags = entities.codes(self.names)
            total, metrics = _classes(scores_BTC, batch, self.label_smoothing, key is None, tags)
        loss = Loss(total, weights_BT.sum(), jax.lax.stop_gradient(metrics))
        return with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        return label_metrics.figures(loss, held_out.labels)

    def lines(self, figures: Mapping[str, float], held_out: HeldOut) -> Iterator[str]:
        names = held_out.labels.get("names")
        own = {"f1": f"F1 of {names[1]!r}"} if names else {"loss": "the mean squared error"}
        yield "labels that were held out, never trained on:"
        for name, value in figures.items():
            yield f"  {name:18} {value:.4f}  {(_MEANINGS | own).get(name, '')}".rstrip()


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
