"""Figures of labels, from sums over an evaluation: accuracy, F1, Matthews correlation, of tags of words also those of
whole entities; of numbers errors and Pearson's.

Each beside what a predictor reaches that looks at nothing: the most frequent class, or the mean, of training.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.losses import Loss


def figures(loss: Loss, facts: Mapping[str, Any]) -> dict[str, float]:
    """`loss` (nats a label, or the mean squared error) and the figures below.

    Args:
      loss: sums over an evaluation of the objective of labels.  facts: of the labels trained on (PreparedSource.facts).
    """
    mean = {"loss": float(loss.metrics["loss"] / max(float(loss.weight), 1e-9))}
    if "confusion" in loss.metrics:
        found = mean | of_classes(np.asarray(loss.metrics["confusion"]), facts["counts"])
        return found | (of_entities(*loss.metrics["entities"]) if "entities" in loss.metrics else {})
    sums = {name: np.asarray(value) for name, value in loss.metrics.items()}
    return mean | of_numbers(sums, float(loss.weight), facts["mean"])


def of_classes(confusion: np.ndarray, train_counts: Sequence[int]) -> dict[str, float]:
    """Figures of a confusion matrix [C, C], a row for each true class and a column for each that was said.

    accuracy           the share that was said right
    macro_f1           mean over the classes that occur (as true ones, or said) of 2 right / (true + said)
    f1                 of two classes: that of the second one, the positive
    matthews           Matthews correlation; of more classes Gorodkin's R_K (doi:10.1016/j.compbiolchem.2004.09.006);
                       0 where all are of one class, or all that was said is
    majority_accuracy  that of always saying the most frequent class of training

    Args:
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
    """entity_precision, entity_recall and entity_f1 over all kinds, each 0 where there is nothing to count (CoNLL-2000,
    doi:10.3115/1117601.1117631; train/evals/entities.py says what is an entity)."""
    share = lambda part, whole: float(part / whole) if whole else 0.0
    figures = {"precision": share(right, said), "recall": share(right, true), "f1": share(2 * right, said + true)}
    return {f"entity_{name}": value for name, value in figures.items()}


def of_numbers(sums: Mapping[str, np.ndarray], weight: float, train_mean: float) -> dict[str, float]:
    """mse, mae, pearson (0 where one side is constant), and mean_mse: that of always saying the mean of training.

    Sums of squares are float32 on the device: where numbers are far from 0 beside their spread, Pearson's loses digits.

    Args:
      sums: `loss`, `absolute_error` and `moments` of train/objectives/classification.py.  weight: how many labels.
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
