"""Which evaluation is the best, by a named metric, and when a run ends because none is better any more.

The same metric ranks the checkpoints that config.keep_best keeps, and the trials of launch.sweep.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from train.objectives.table import OBJECTIVES

# First pattern found in the last part of a metric's name, at the start of a word of it, decides. (pattern, lower is
# better)
DIRECTIONS = (
    ("loss|perplexity|bits_per_byte|mse|mae|rmse|error", True),
    ("accuracy|f1|matthews|pearson|spearman|precision|recall|exact_match|bleu|chrf|rouge|reward", False),
)


class UnknownMetric(ValueError):
    """A metric that is not there, or of which it isn't known what is better; the message lists what there is."""


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` ('validation/loss', 'validation/news/macro_f1') is the better one.

    Raises:
      UnknownMetric: it is no objective's own figure, and no pattern of DIRECTIONS is in its name.
    """
    name = metric.rpartition("/")[2]
    for objective in OBJECTIVES.values():
        if name in objective.lower_is_better:
            return objective.lower_is_better[name]
    for pattern, lower in DIRECTIONS:
        if re.search(rf"(?:^|_)(?:{pattern})", name):
            return lower
    known = "; ".join(f"{('higher', 'lower')[lower]}: {pattern.replace('|', ', ')}" for pattern, lower in DIRECTIONS)
    raise UnknownMetric(f"metric is {metric!r}, and whether lower or higher is better shows only in names of: {known}")


def value_of(metric: str, figures: Mapping) -> float:
    """The figure `metric` of an evaluation.

    Raises:
      UnknownMetric: the evaluation gave no such number.
    """
    numbers = [name for name, value in figures.items() if np.ndim(value) == 0]
    if metric not in numbers:
        raise UnknownMetric(
            f"config.early_stopping.metric is {metric!r}; the evaluations of this run give " + ", ".join(numbers)
        )
    return float(figures[metric])


class EarlyStopping:
    """The best evaluation so far, and whether the run has waited long enough for a better one.

    An evaluation that is not better by more than `min_delta` than the last one that was is one of waiting; after
    `patience` of them in a row the run has ended (0: never). The best one is the best, by however little.

    Args:
      saved: what `to_json` gave.

    Raises:
      UnknownMetric: what is better doesn't show in the metric's name.
      ValueError: a number below 0.
    """

    def __init__(self, metric: str, patience: int = 0, min_delta: float = 0.0, saved: Mapping | None = None):
        if patience < 0 or min_delta < 0:
            raise ValueError(f"patience {patience} and min_delta {min_delta} must not be below 0")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self._sign = 1 if lower_is_better(metric) else -1
        saved = saved or {"step": None, "value": None, "reference": None, "waited": 0}
        self.step, self.value = saved["step"], saved["value"]
        self._reference, self._waited = saved["reference"], saved["waited"]

    def update(self, step: int, figures: Mapping) -> bool:
        """Take in the evaluation after `step`; whether it is the best so far. One that is not finite never is.

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
        """The end of an ended run, in words."""
        best = "was never finite" if self.step is None else f"was best at step {self.step} ({self.value:.4g})"
        much = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} {best} and has not improved{much} in the last {self._waited} evaluations"

    def best(self) -> dict | None:
        """What a summary says of the best evaluation."""
        return None if self.step is None else {"metric": self.metric, "value": self.value, "step": self.step}

    def to_json(self) -> dict:
        return {"step": self.step, "value": self.value, "reference": self._reference, "waited": self._waited} | {
            "ended": self.ended
        }
