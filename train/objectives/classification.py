"""Classification and regression: predict a class or a number for a text or for each word.

The data define the tokens at which a label is predicted, and their targets (data/examples/labels.py): the last or the
first token of a text, or the first token of each word. A token has few scores, so they are computed for all tokens, and
weights select the labelled ones.

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
from train.objectives import routing
from train.objectives.objective import LOSS, Curve, Headline, HeldOut, Objective

# Explanations that are printed beside the metrics of an evaluation.
_MEANINGS = {
    "macro_f1": "mean F1 of the classes",
    "matthews": "Matthews correlation",
    "loss": "nats per label; of numbers, the mean squared error",
    "majority_accuracy": "accuracy of always predicting the most frequent class of training",
    "mean_mse": "mean squared error of always predicting the mean of training",
    "pearson": "correlation",
    "entity_f1": "F1 of whole entities, counted like CoNLL's script and seqeval",
}


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy for integer targets, which are classes; squared error for float targets, which are numbers.

    The metric `loss` is nats per label, without label smoothing, or the squared error. Sums that only an evaluation
    needs (train/evals/label_metrics.py) are computed only when `key` is None.

    Args:
      label_smoothing: probability mass moved from the target to all classes (arXiv:1512.00567).
      balance_loss, router_z_loss: see routing.with_routers.
      names: names of the classes, which come from the data. If they are IOB tags, whole entities are counted too.
    """

    label_smoothing: float = 0.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0
    names: tuple[str, ...] = dataclasses.field(default=(), metadata={"from_data": True})

    config: ClassVar = "configs/classify.py"
    predicts_tokens: ClassVar = False
    headlines: ClassVar = (
        Headline("accuracy", "accuracy", "on held-out labels", {"majority_accuracy": "most frequent class"}),
        Headline("mse", "mean squared error", "on held-out labels", {"mean_mse": "mean of training"}),
    )
    curves: ClassVar = (
        LOSS._replace(baselines={"mean_mse": "mean of training"}),
        Curve(("accuracy",), "Accuracy", "share of right labels", {"majority_accuracy": "most frequent class"}),
        Curve(("macro_f1", "f1", "matthews"), "F1 and correlation", "mean F1 of the classes; Matthews correlation"),
        Curve(("entity_precision", "entity_recall", "entity_f1"), "Whole entities", "counted like CoNLL's script"),
        Curve(("pearson",), "Pearson's correlation", "of predicted and true numbers"),
    )
    meanings: ClassVar = _MEANINGS
    ranges: ClassVar = {"label_smoothing": "float [0, 1)"} | routing.RANGES

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        others = sorted({kinds.kind_of(spec) for spec, _ in kinds.sources(data)} - {"labels"})
        if others:
            raise ValueError(
                f"config.objective.name 'labels' can learn only from labels, but config.data also has "
                f"{', '.join(others)}; remove these, or set config.data.format to 'labels' if config.data.path is of "
                "labels"
            )
        kind, fitting = data["labels"]["kind"], self.head(data)
        if model.head != fitting:
            raise ValueError(
                f"config.model.head is {model.head!r}, but config.data.labels.kind {kind!r} needs {fitting!r}; "
                "set it to that, or to '' to choose it automatically"
            )
        if kind == "number" and model.num_labels != 1:
            raise ValueError(
                f"config.model.num_labels is {model.num_labels}, but config.data.labels.kind 'number' has one score; "
                "set it to 0 or 1"
            )

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
        return routing.with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        return label_metrics.figures(loss, _labels(held_out))

    def lines(self, figures: Mapping[str, float], held_out: HeldOut) -> Iterator[str]:
        names = _labels(held_out).get("names")
        own = {"f1": f"F1 of {names[1]!r}", "loss": "nats per label"} if names else {"loss": "the mean squared error"}
        yield "held-out labels, not used in training:"
        for name, value in figures.items():
            yield f"  {name:18} {value:.4f}  {(_MEANINGS | own).get(name, '')}".rstrip()


def _labels(held_out: HeldOut) -> Mapping[str, Any]:
    if held_out.labels is None:
        raise ValueError("the held-out data have no facts about labels")
    return held_out.labels


def _classes(scores_BTC, batch, smoothing, evaluating, tags):
    targets_BT, weights_BT = batch["targets"], batch["weights"]
    hot = lambda ids_BT: (ids_BT[..., None] == jnp.arange(scores_BTC.shape[-1])).astype(jnp.float32)
    logs_BTC, true_BTC = jax.nn.log_softmax(scores_BTC), hot(targets_BT)
    nll_BT = -(true_BTC * logs_BTC).sum(-1)
    total = (weights_BT * ((1 - smoothing) * nll_BT - smoothing * logs_BTC.mean(-1))).sum()
    said_BTC = hot(scores_BTC.argmax(-1)) * weights_BT[..., None]
    metrics = {"loss": (weights_BT * nll_BT).sum(), "accuracy": (true_BTC * said_BTC).sum()}
    if evaluating:  # a row for each true class, a column for each predicted class
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
    if evaluating:  # sums of x, y, xx, xy, yy: x is the prediction, y the target
        moments = jnp.stack([said_BT, targets_BT, said_BT**2, said_BT * targets_BT, targets_BT**2], -1)
        metrics["moments"] = (weights_BT[..., None] * moments).sum((0, 1))
    return total, metrics
