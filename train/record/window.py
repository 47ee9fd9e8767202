"""Averages metrics since they were last logged."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class Window:
    """Weighted sums of metrics over steps.

    Numbers are summed since the last log line. Arrays, which are large with many experts, are summed since the last
    evaluation. The sums are saved with a checkpoint, so a continued run logs the same means.
    """

    def __init__(self, saved: dict | None):
        saved = saved or {"numbers": {}, "arrays": {}}
        # {name: [sum, count]} of numbers about batches, which count once per batch that has them.
        self.of_batches: dict[str, list[float]] = {name: [*v] for name, v in saved.get("of_batches", {}).items()}
        self.numbers = dict(saved["numbers"])
        self.arrays: dict[str, Any] = {name: np.asarray(value) for name, value in saved["arrays"].items()}

    def to_json(self) -> dict:
        return {
            "numbers": dict(self.numbers),
            "arrays": {name: np.asarray(v).tolist() for name, v in self.arrays.items()},
            "of_batches": {name: [*v] for name, v in self.of_batches.items()},
        }

    def add(self, result: dict[str, np.ndarray], of_batch: Mapping[str, float] = {}) -> None:
        """Adds the result of a step, and numbers about its batch; those that are not finite are left out."""
        for name, number in of_batch.items():
            if math.isfinite(number):
                total, count = self.of_batches.get(name, (0.0, 0))
                self.of_batches[name] = [total + number, count + 1]
        self.latest = {"grad_norm": float(result["grad_norm"]), "skipped": int(result["skipped"])}
        if result["streak"]:
            return  # a skipped update may be NaN, and would make the mean NaN; `skipped` counts it
        weight = float(result["weight"])
        for name, value in result.items():
            if name not in ("weight", "grad_norm", "skipped", "streak", "left_out"):
                sums = self.arrays if value.ndim else self.numbers
                sums[name] = sums.get(name, 0.0) + (value if value.ndim else float(value)) * weight
        for sums in (self.numbers, self.arrays):
            sums["weight"] = sums.get("weight", 0.0) + weight

    def flush(self) -> dict[str, float]:
        """Returns the means over the window's tokens, the newest gradient norm, and the number of skipped updates. The
        window starts anew."""
        means, self.numbers = _means(self.numbers), {}
        means |= {name: total / count for name, (total, count) in self.of_batches.items()}
        self.of_batches = {}
        return {"loss": math.nan} | means | self.latest

    def flush_arrays(self) -> dict[str, np.ndarray]:
        means, self.arrays = _means(self.arrays), {}
        return means


def _means(sums: dict) -> dict:
    weight = float(sums.get("weight", 0.0))
    return {name: value / weight if weight else math.nan for name, value in sums.items() if name != "weight"}
