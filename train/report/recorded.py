"""What a run has recorded in its workdir, as the sections of its report read it. run_report.py lists the files."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from train.objectives.objective import Objective, numbers
from train.objectives.table import OBJECTIVES
from train.record import metrics
from train.watch import goodput

HELD_OUT = "validation/"  # what the names of an evaluation's figures begin with


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The contents of metrics.jsonl, summary.json and config.json; what is missing or damaged is empty."""

    rows: list[dict]
    summary: dict
    config: dict

    @property
    def objective(self) -> type[Objective]:
        """The class of the run's objective; the base class if the run has none of today's."""
        return OBJECTIVES.get((self.config.get("objective") or {}).get("name", "language"), Objective)

    @functools.cached_property
    def evaluations(self) -> list[dict]:
        """The evaluations, see `evaluations`."""
        return evaluations(self.rows)

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of all metrics of training and of evaluations, without `validation/`, sorted."""
        return sorted({key.removeprefix(HELD_OUT) for row in self.rows for key in numbers(row)})

    @functools.cached_property
    def validation(self) -> dict[str, Any]:
        """The newest value of each figure of evaluations; launch.evaluate's, if there is one, of all held-out rows."""
        merged = {key: value for row in self.evaluations for key, value in row.items() if key != "step"}
        return merged | (self.summary.get("validation") or {})

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps and values of the lines that have `key`, float64. Values that were not finite are NaN."""
        pairs = [(row["step"], row[key]) for row in self.rows if isinstance(row.get(key), int | float)]
        steps, values = np.array(pairs, float).reshape(-1, 2).T
        return steps, values

    def last(self, key: str):
        """Returns the newest value of `key`, or None."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    def baselines(self, declared: Mapping[str | float, str]) -> dict[str, Any]:
        """Returns the values of the baselines of a Headline or a Curve by their names. What is missing is left out."""
        values = {name: self.validation.get(key) if isinstance(key, str) else key for key, name in declared.items()}
        return {name: value for name, value in values.items() if show(value, str) != "–"}


def evaluations(rows: list[dict]) -> list[dict]:
    """Returns the evaluations among the rows of a metrics.jsonl as {"step", figure: value}, ordered by step."""
    found: dict[int, dict] = {}
    for row in rows:
        own = {key.removeprefix(HELD_OUT): value for key, value in row.items() if key.startswith(HELD_OUT)}
        if own:
            found[row["step"]] = found.get(row["step"], {"step": row["step"]}) | own
    return [found[step] for step in sorted(found)]


def load(workdir: Path) -> Recorded:
    """Reads the files of a workdir. The wall time is the newest that any of them has."""
    rows = metrics.read(workdir / "metrics.jsonl")
    summary, config = _load(workdir / "summary.json"), _load(workdir / "config.json")
    walls = [wall for wall in (summary.get("wall"), *(row.get("wall") for row in rows)) if wall]
    return Recorded(rows, summary | {"wall": max(walls, key=goodput.total, default={})}, config)


def _load(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError) as error:
        logging.warning("%s is left out of the report: %s", path, error)
        return {}


def show(value, form) -> str:
    """Formats a value with a format string or a function; returns a dash if it is missing or NaN."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "–"
    return form(value) if callable(form) else form.format(value)
