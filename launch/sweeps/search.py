"""The search file of launch.sweep: which fields of a config vary, and over what.

    def get_search():
        return {
            "optimizer.learning_rate": ("log", 1e-5, 1e-2),     between these, evenly in its logarithm
            "adapt.dropout": ("float", 0.0, 0.3),               evenly; ("float", 0.0, 0.3, 0.1): in steps
            "optimizer.warmup_steps": ("int", 0, 200, 50),      whole numbers; without a step it is 1
            "adapt.rank": ("choice", 4, 8, 16),                 one of these, in no order
        }

What is best is no matter of this file: trials are ranked by config.early_stopping.metric.
"""

import difflib
import itertools
import random
import runpy
import traceback
from decimal import Decimal
from numbers import Real
from pathlib import Path

import numpy as np
import optuna
from ml_collections import ConfigDict

from launch.program.checking import ConfigError, checking
from launch.run.defaults import flat

Space = dict[str, tuple]  # {field: (kind, ...)}

FORMS = {"float": "low, high[, step]", "log": "low, high", "int": "low, high[, step]", "choice": "value, ..."}


def read(path: str) -> Space:
    """What `get_search` of a search file returns.

    Raises:
      ConfigError: there is no such file or function, or it fails.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--search: there is no file {path}")
    try:
        module = runpy.run_path(path)
        space = module["get_search"]() if "get_search" in module else None
    except Exception as error:  # whatever a user's file may raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = lines[-1] if lines else getattr(error, "lineno", "?")
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"{path} must have a function get_search() that returns {{field: (kind, ...)}}")
    return space


def check(space: Space, config: ConfigDict) -> None:
    """Every field is one of the config, and every range has values that it can hold.

    Raises:
      ConfigError: the first one that doesn't; what would do.
    """
    known = flat(config.to_dict())
    for field, form in space.items():
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            raise ConfigError(f"search: the config has no field {field!r}" + (f"; is it {near[0]}?" if near else ""))
        if field.startswith("early_stopping."):
            raise ConfigError(f"search: {field} says what is best; it must be the same in all trials")
        if not isinstance(form, tuple) or not form or form[0] not in FORMS:
            kinds = ", ".join(f"({kind!r}, {rest})" for kind, rest in FORMS.items())
            raise ConfigError(f"search: {field}: {form!r} is none of {kinds}")
        problem = _problem(*form)
        if problem:
            raise ConfigError(f"search: {field}: {form!r}: {problem}")
        for value in _ends(form):
            with checking(f"search: {field}"):
                applied(config, {field: value})


def _ends(form: tuple) -> tuple:
    """The values of a choice, or where a range begins and ends."""
    return form[1:] if form[0] == "choice" else form[1:3]


def corners(space: Space) -> list[dict]:
    """Points that have both ends of every range and every choice: the first of each field, then one of them changed."""
    first = {field: form[1] for field, form in space.items()}
    return [first, *(first | {field: value} for field, form in space.items() for value in _ends(form)[1:])]


def _problem(kind: str, *values) -> str:
    if kind == "choice":
        if not values or len({(type(value), value) for value in values}) < len(values):
            return "needs values that all differ"
        strange = [value for value in values if not isinstance(value, bool | Real | str | None)]
        return f"{strange[0]!r} is no number, string, True, False or None" if strange else ""
    if len(values) not in ((2,) if kind == "log" else (2, 3)):
        return f"after {kind!r} come {FORMS[kind]}"
    number = int if kind == "int" else int | float
    if not all(isinstance(value, number) and not isinstance(value, bool) for value in values):
        return "all must be " + ("whole numbers" if kind == "int" else "numbers")
    low, high, *step = values
    if not low < high:
        return f"an empty range; {low} must be below {high}"
    if kind == "log" and low <= 0:
        return "a logarithm needs numbers above 0"
    if step and (step[0] <= 0 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step[0]))):
        return f"steps of {step[0]} do not lead from {low} to {high}"
    return ""


def applied(config: ConfigDict, values: dict) -> ConfigDict:
    """The config with these fields changed."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    return config


def grid(space: Space, seed: int) -> list[dict]:
    """Every combination of values, shuffled, so that the first ones are not all of one corner.

    Raises:
      ConfigError: a field may have any value of a range.
    """
    values = []
    for field, (kind, *rest) in space.items():
        if kind == "log" or (kind == "float" and len(rest) == 2):
            raise ConfigError(
                f"search: {field}: {(kind, *rest)!r} has no steps, so there is no grid; give ('choice', value, ...)"
                + (f" or ('float', {rest[0]}, {rest[1]}, step)" if kind == "float" else "")
            )
        if kind == "choice":
            values.append(rest)
        else:
            low, high, step = (Decimal(str(value)) for value in (*rest, 1)[:3])
            number = int if kind == "int" else float
            values.append([number(low + i * step) for i in range(int((high - low) / step) + 1)])
    points = [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]
    random.Random(seed).shuffle(points)
    return points


class _Point(optuna.samplers.RandomSampler):
    """One point of the grid. (Optuna's GridSampler fails at its end where Optuna doesn't drive the trials itself.)"""

    def __init__(self, point: dict):
        super().__init__()
        self.point = point

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.point[param_name]


def sampler(kind: str, seed: int, number: int, points: list[dict]) -> optuna.samplers.BaseSampler:
    """The sampler of trial `number`. Each trial has its own, with a seed of its own: Optuna doesn't store the state of
    random numbers, and one sampler for all would, after a restart, draw the first trials' values again."""
    if kind == "grid":
        return _Point(points[number])
    seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}[kind](seed=seed)


def suggest(trial: optuna.Trial, space: Space) -> dict:
    """The values of a trial: those it has, or new ones."""
    values = {}
    for field, (kind, *rest) in space.items():
        if kind == "choice":
            values[field] = trial.suggest_categorical(field, rest)
        elif kind == "int":
            values[field] = trial.suggest_int(field, *rest[:2], step=(*rest, 1)[2])
        else:
            values[field] = trial.suggest_float(field, *rest[:2], step=(*rest, None)[2], log=kind == "log")
    return values
