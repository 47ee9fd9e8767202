"""Metrics of labels equal those of scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn import metrics

from train.evals.label_metrics import of_classes, of_numbers

RANDOM = np.random.default_rng(0)
ANSWERS = {
    "two classes": (RANDOM.integers(0, 2, 50), RANDOM.integers(0, 2, 50), 2),
    "some classes": (RANDOM.integers(0, 4, 60), RANDOM.integers(0, 4, 60), 4),
    # Of 6 classes, one is never true, one is never predicted, and one occurs in neither.
    "classes that lack": (RANDOM.choice([0, 1, 2, 3], 40), RANDOM.choice([0, 1, 2, 4], 40), 6),
    "one class said": (RANDOM.integers(0, 3, 20), np.full(20, 1), 3),
    "all right": (np.arange(12) % 3, np.arange(12) % 3, 3),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_classes(name):
    true, said, count = ANSWERS[name]
    confusion = np.zeros((count, count))
    np.add.at(confusion, (true, said), 1)
    counts = np.arange(count)  # the last class is the most frequent one in training
    figures = of_classes(confusion, counts)
    expected = {
        "accuracy": metrics.accuracy_score(true, said),
        "macro_f1": metrics.f1_score(true, said, average="macro", zero_division=0),
        "matthews": metrics.matthews_corrcoef(true, said),
        "majority_accuracy": metrics.accuracy_score(true, np.full(len(true), count - 1)),
    }
    if count == 2:
        expected["f1"] = metrics.f1_score(true, said)
    assert figures == pytest.approx(expected, abs=1e-12)


def sums_of(true, said):
    moments = np.stack([said, true, said**2, said * true, true**2]).sum(1)
    return {
        "loss": np.square(said - true).sum(),
        "absolute_error": np.abs(said - true).sum(),
        "moments": moments,
    }


def test_numbers():
    true = RANDOM.normal(3, 2, 30)
    said = true + RANDOM.normal(size=30)
    figures = of_numbers(sums_of(true, said), 30, 2.5)
    expected = {
        "mse": metrics.mean_squared_error(true, said),
        "mae": metrics.mean_absolute_error(true, said),
        "pearson": pearsonr(true, said).statistic,
        "mean_mse": metrics.mean_squared_error(true, np.full(30, 2.5)),
    }
    assert figures == pytest.approx(expected, rel=1e-9)
    assert of_numbers(sums_of(true, np.full(30, 4.0)), 30, 2.5)["pearson"] == 0


def test_nothing_evaluated_is_no_crash():
    assert of_classes(np.zeros((2, 2)), [1, 1])["accuracy"] == 0
    assert of_numbers(sums_of(np.zeros(0), np.zeros(0)), 0, 1.0)["pearson"] == 0
