"""Finds the best evaluation by a named metric, and ends a run when evaluations no longer improve.

The same metric ranks the checkpoints that config.keep_best keeps, and the trials of launch.sweep. A bound on a second
metric keeps evaluations out of this ranking. It is for metrics that are easy to win at the cost of another one: a model
that refuses every question answers no harmful one.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from train.objectives.table import OBJECTIVES

# (pattern, whether lower is better). The first pattern decides that matches the last part of a metric's name, at the
# start of one of its words: 'validation/macro_f1' matches f1.
DIRECTIONS = (
    ("loss|perplexity|bits_per_byte|mse|mae|rmse|error|harmful_answered|over_refusal", True),
    ("accuracy|f1|matthews|pearson|spearman|precision|recall|exact_match|bleu|chrf|rouge|reward", False),
)


class UnknownMetric(ValueError):
    """The metric does not exist, or its direction (lower or higher is better) is unknown. The message lists choices."""


def lower_is_better(metric: str, field: str = "metric") -> bool:
    """Returns whether a smaller value of `metric` ('validation/loss', 'validation/news/macro_f1') is better.

    `field` of config.early_stopping names the metric.

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
    raise UnknownMetric(f"{field} is {metric!r}, and its name does not show what is better; names that do: {known}")


def value_of(metric: str, figures: Mapping, field: str = "metric") -> float:
    """Returns the value of `metric` in an evaluation; `field` of config.early_stopping names the metric.

    Raises:
      UnknownMetric: the evaluation has no such number.
    """
    numbers = [name for name, value in figures.items() if np.ndim(value) == 0]
    if metric not in numbers:
        raise UnknownMetric(
            f"config.early_stopping.{field} is {metric!r}; choose from what this run evaluates: " + ", ".join(numbers)
        )
    return float(figures[metric])


class EarlyStopping:
    """Tracks the best evaluation so far, and whether the run should end.

    The run ends after `patience` evaluations in a row (0: never) without an improvement by more than `min_delta` over
    the last evaluation that did improve so much. `step` and `value` are the best evaluation, however small its lead.

    Args:
      metric: name of the value in an evaluation, such as 'validation/loss'.
      saved: the result of `to_json`, to continue a run.
      bounded: another value in an evaluation. An evaluation whose `bounded` is worse than `bound` (above it; below it
        where higher is better) is never the best and never an improvement. '': every evaluation counts.

    Raises:
      UnknownMetric: the name of a metric does not show whether lower or higher is better.
      ValueError: `patience` or `min_delta` is negative, or `bound` is set and bounds nothing.
    """

    def __init__(
        self,
        metric: str,
        patience: int = 0,
        min_delta: float = 0.0,
        saved: Mapping | None = None,
        bounded: str = "",
        bound: float = 0.0,
    ):
        if patience < 0 or min_delta < 0:
            raise ValueError(f"patience is {patience} and min_delta is {min_delta}; both must be at least 0")
        if bound and not bounded:
            raise ValueError(f"bound is {bound:g}, but bounded names no metric; name one, or leave bound at 0")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.bounded, self._bound = bounded, bound
        self._bound_is_upper = not bounded or lower_is_better(bounded, "bounded")
        self._sign = 1 if lower_is_better(metric) else -1
        saved = saved or {"step": None, "value": None, "reference": None, "waited": 0}
        self.step, self.value = saved["step"], saved["value"]
        self._reference, self._waited = saved["reference"], saved["waited"]

    def update(self, step: int, figures: Mapping) -> bool:
        """Records the evaluation after `step` and returns whether it is the best so far.

        A value that is not finite is never the best, and neither is one that `excluded` gives a reason for.

        Raises:
          UnknownMetric: the metric, or the bounded one, is not among `figures`.
        """
        value = self.rank(figures)
        self._waited += 1
        if self._gain(value, self._reference) > self.min_delta:
            self._reference, self._waited = value, 0
        best = self._gain(value, self.value) > 0
        if best:
            self.step, self.value = step, value
        return best

    def rank(self, figures: Mapping) -> float:
        """Returns the value that ranks an evaluation: the metric's, or NaN if the bound excludes the evaluation."""
        value = value_of(self.metric, figures)
        return math.nan if self.excluded(figures) else value

    def excluded(self, figures: Mapping) -> str:
        """Returns why the bound excludes an evaluation, like 'validation/over_refusal 0.31 > 0.1'; '' if it doesn't."""
        if not self.bounded:
            return ""
        value = value_of(self.bounded, figures, "bounded")
        within = value <= self._bound if self._bound_is_upper else value >= self._bound
        return "" if within else f"{self.bounded} {value:.4g} {'>' if self._bound_is_upper else '<'} {self._bound:g}"

    def _gain(self, value: float, before: float | None) -> float:
        if not math.isfinite(value):
            return -math.inf
        return math.inf if before is None else self._sign * (before - value)

    @property
    def ended(self) -> bool:
        return 0 < self.patience <= self._waited

    def why(self) -> str:
        """Returns the reason why the run has ended, as a sentence."""
        if self.step is not None:
            best = f"was best at step {self.step} ({self.value:.4g})"
        else:
            best = f"never counted, because {self._condition()} never held," if self.bounded else "was never finite"
        much = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} {best} and has not improved{much} in the last {self._waited} evaluations"

    def _condition(self) -> str:
        return f"{self.bounded} {'<=' if self._bound_is_upper else '>='} {self._bound:g}"

    def outcome(self) -> str:
        """Returns a line on what the bound made of the run; '' without a bound."""
        if not self.bounded:
            return ""
        if self.step is None:
            return f"No checkpoint is the best one: {self._condition()} held in no evaluation"
        return f"Best: step {self.step}, {self.metric} {self.value:.4g}, while {self._condition()}"

    def best(self) -> dict | None:
        """Returns the best evaluation as {metric, value, step}, or None if no value was finite yet."""
        return None if self.step is None else {"metric": self.metric, "value": self.value, "step": self.step}

    def to_json(self) -> dict:
        return {"step": self.step, "value": self.value, "reference": self._reference, "waited": self._waited} | {
            "ended": self.ended
        }
