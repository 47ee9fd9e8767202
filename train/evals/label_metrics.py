"""Metrics of predicted labels, computed from sums over an evaluation.

Classes get accuracy, F1 and Matthews correlation; word tags get those of whole entities too. Numbers get errors and
Pearson's correlation. Each comes with a baseline that ignores the input: the most frequent class, or the mean, of the
training labels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.losses import Loss


def figures(loss: Loss, facts: Mapping[str, Any]) -> dict[str, float]:
    """Returns `loss` (nats per label, or the mean squared error) and the metrics of `of_classes` or `of_numbers`.

    Args:
      loss: sums over an evaluation, of train/objectives/classification.py.
      facts: describes the training labels (PreparedSource.facts).
    """
    mean = {"loss": float(loss.metrics["loss"] / max(float(loss.weight), 1e-9))}
    if "confusion" in loss.metrics:
        found = mean | of_classes(np.asarray(loss.metrics["confusion"]), facts["counts"])
        return found | (of_entities(*loss.metrics["entities"]) if "entities" in loss.metrics else {})
    sums = {name: np.asarray(value) for name, value in loss.metrics.items()}
    return mean | of_numbers(sums, float(loss.weight), facts["mean"])


def of_classes(confusion: np.ndarray, train_counts: Sequence[int]) -> dict[str, float]:
    """Returns the metrics of a confusion matrix [C, C] with a row per true class and a column per predicted class.

    accuracy           share of right predictions
    macro_f1           F1 = 2 right / (true + predicted), averaged over the classes that occur as true or predicted
    f1                 with two classes only: F1 of the second one, which counts as the positive class
    matthews           Matthews correlation; for more than two classes Gorodkin's R_K
                       (doi:10.1016/j.compbiolchem.2004.09.006); 0 if all true or all predicted classes are the same
    majority_accuracy  accuracy of always predicting the most frequent class of training

    Args:
      confusion: weighted counts.
      train_counts: how often each class occurs in training.
    """
    confusion = np.asarray(confusion, np.float64)
    true, said, right, count = confusion.sum(1), confusion.sum(0), confusion.diagonal(), max(confusion.sum(), 1e-9)
    occurs = true + said > 0
    f1 = 2 * right / np.where(occurs, true + said, 1)
    spread = (count**2 - said @ said) * (count**2 - true @ true)
    figures = {
        "accuracy": right.sum() / count,
        "macro_f1": f1[occurs].mean() if occurs.any() else 0.0,
        "matthews": (right.sum() * count - true @ said) / math.sqrt(spread) if spread > 0 else 0.0,
        "majority_accuracy": true[int(np.argmax(train_counts))] / count,
    }
    return {name: float(value) for name, value in (figures | ({"f1": f1[1]} if len(f1) == 2 else {})).items()}


def of_entities(right: float, said: float, true: float) -> dict[str, float]:
    """Returns entity_precision, entity_recall and entity_f1 over all kinds (CoNLL-2000, doi:10.3115/1117601.1117631).

    Each is 0 if there is nothing to count. train/evals/entities.py defines an entity.
    """
    share = lambda part, whole: float(part / whole) if whole else 0.0
    figures = {"precision": share(right, said), "recall": share(right, true), "f1": share(2 * right, said + true)}
    return {f"entity_{name}": value for name, value in figures.items()}


def of_numbers(sums: Mapping[str, np.ndarray], weight: float, train_mean: float) -> dict[str, float]:
    """Returns mse, mae, pearson (0 if one side is constant), and mean_mse: the mse of always predicting the mean.

    The sums of squares are float32 on the device. If the numbers are far from 0 compared with their spread, Pearson's
    correlation loses digits.

    Args:
      sums: `loss`, `absolute_error` and `moments` of train/objectives/classification.py.
      weight: number of labels.
      train_mean: mean of the training labels.
    """
    weight = max(weight, 1e-9)
    x, y, xx, xy, yy = np.asarray(sums["moments"], np.float64) / weight
    spread = (xx - x * x) * (yy - y * y)
    return {
        "mse": float(sums["loss"] / weight),
        "mae": float(sums["absolute_error"] / weight),
        "pearson": float((xy - x * y) / math.sqrt(spread)) if spread > 0 else 0.0,
        "mean_mse": float(yy - 2 * y * train_mean + train_mean**2),
    }
