"""Finds the best evaluation by a named metric, and ends a run when evaluations no longer improve.

The same metric ranks the checkpoints that config.keep_best keeps, and the trials of launch.sweep.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from train.objectives.table import OBJECTIVES

# (pattern, whether lower is better). The first pattern decides that matches the last part of a metric's name, at the
# start of one of its words: 'validation/macro_f1' matches f1.
DIRECTIONS = (
    ("loss|perplexity|bits_per_byte|mse|mae|rmse|error", True),
    ("accuracy|f1|matthews|pearson|spearman|precision|recall|exact_match|bleu|chrf|rouge|reward", False),
)


class UnknownMetric(ValueError):
    """The metric does not exist, or its direction (lower or higher is better) is unknown. The message lists choices."""


def lower_is_better(metric: str) -> bool:
    """Returns whether a smaller value of `metric` ('validation/loss', 'validation/news/macro_f1') is better.

    Raises:
      UnknownMetric: no objective declares this metric, and no pattern of DIRECTIONS matches its name.
    """
    name = metric.rpartition("/")[2]
    for objective in OBJECTIVES.values():
        if name in objective.lower_is_better:
            return objective.lower_is_better[name]
    for pattern, lower in DIRECTIONS:
        if re.search(rf"(?:^|_)(?:{pattern})", name):
            return lower
    known = "; ".join(f"{('higher', 'lower')[lower]}: {pattern.replace('|', ', ')}" for pattern, lower in DIRECTIONS)
    raise UnknownMetric(f"metric is {metric!r}, and its name does not show what is better; names that do: {known}")


def value_of(metric: str, figures: Mapping) -> float:
    """Returns the value of `metric` in an evaluation.

    Raises:
      UnknownMetric: the evaluation has no such number.
    """
    numbers = [name for name, value in figures.items() if np.ndim(value) == 0]
    if metric not in numbers:
        raise UnknownMetric(
            f"config.early_stopping.metric is {metric!r}; choose from what this run evaluates: " + ", ".join(numbers)
        )
    return float(figures[metric])


class EarlyStopping:
    """Tracks the best evaluation so far, and whether the run should end.

    The run ends after `patience` evaluations in a row (0: never) without an improvement by more than `min_delta` over
    the last evaluation that did improve so much. `step` and `value` are the best evaluation, however small its lead.

    Args:
      metric: name of the value in an evaluation, such as 'validation/loss'.
      saved: the result of `to_json`, to continue a run.

    Raises:
      UnknownMetric: the metric's name does not show whether lower or higher is better.
      ValueError: `patience` or `min_delta` is negative.
    """

    def __init__(self, metric: str, patience: int = 0, min_delta: float = 0.0, saved: Mapping | None = None):
        if patience < 0 or min_delta < 0:
            raise ValueError(f"patience is {patience} and min_delta is {min_delta}; both must be at least 0")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self._sign = 1 if lower_is_better(metric) else -1
        saved = saved or {"step": None, "value": None, "reference": None, "waited": 0}
        self.step, self.value = saved["step"], saved["value"]
        self._reference, self._waited = saved["reference"], saved["waited"]

    def update(self, step: int, figures: Mapping) -> bool:
        """Records the evaluation after `step` and returns whether it is the best so far.

        A value that is not finite is never the best.

        Raises:
          UnknownMetric: the metric is not among `figures`.
        """
        value = value_of(self.metric, figures)
        self._waited += 1
        if self._gain(value, self._reference) > self.min_delta:
            self._reference, self._waited = value, 0
        best = self._gain(value, self.value) > 0
        if best:
            self.step, self.value = step, value
        return best

    def _gain(self, value: float, before: float | None) -> float:
        if not math.isfinite(value):
            return -math.inf
        return math.inf if before is None else self._sign * (before - value)

    @property
    def ended(self) -> bool:
        return 0 < self.patience <= self._waited

    def why(self) -> str:
        """Returns the reason why the run has ended, as a sentence."""
        best = "was never finite" if self.step is None else f"was best at step {self.step} ({self.value:.4g})"
        much = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} {best} and has not improved{much} in the last {self._waited} evaluations"

    def best(self) -> dict | None:
        """Returns the best evaluation as {metric, value, step}, or None if no value was finite yet."""
        return None if self.step is None else {"metric": self.metric, "value": self.value, "step": self.step}

    def to_json(self) -> dict:
        return {"step": self.step, "value": self.value, "reference": self._reference, "waited": self._waited} | {
            "ended": self.ended
        }
