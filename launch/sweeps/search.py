"""Search files of launch.sweep, which name the fields of a config that vary and their values.

    def get_search():
        return {
            "optimizer.learning_rate": ("log", 1e-5, 1e-2),     a number in this range, uniform in its logarithm
            "adapt.dropout": ("float", 0.0, 0.3),               uniform; ("float", 0.0, 0.3, 0.1): in steps of 0.1
            "optimizer.warmup_steps": ("int", 0, 200, 50),      a whole number; without the last value, the step is 1
            "adapt.rank": ("choice", 4, 8, 16),                 one of these, treated as categories without order
        }

Search files do not say which trial is best: config.early_stopping.metric ranks them.
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
    """Returns the search space that `get_search` of a search file returns.

    Raises:
      ConfigError: there is no such file or function, or the file raises an error.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--search: there is no file {path}")
    try:
        module = runpy.run_path(path)
        space = module["get_search"]() if "get_search" in module else None
    except Exception as error:  # a user's file may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = lines[-1] if lines else getattr(error, "lineno", "?")
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"{path} must have a function get_search() that returns {{field: (kind, ...)}}")
    return space


def check(space: Space, config: ConfigDict) -> None:
    """Checks that every field exists in the config, and that every range has values of the field's type.

    Raises:
      ConfigError: names the first field that is wrong.
    """
    known = flat(config.to_dict())
    for field, form in space.items():
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            raise ConfigError(
                f"search: the config has no field {field!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
        if field.startswith("early_stopping."):
            raise ConfigError(f"search: {field} decides which trial is best, so it must be the same in all trials")
        if not isinstance(form, tuple) or not form or form[0] not in FORMS:
            kinds = ", ".join(f"({kind!r}, {rest})" for kind, rest in FORMS.items())
            raise ConfigError(f"search: {field}: {form!r} must have one of the forms {kinds}")
        problem = _problem(*form)
        if problem:
            raise ConfigError(f"search: {field}: {form!r}: {problem}")
        for value in _ends(form):
            with checking(f"search: {field}"):
                applied(config, {field: value})


def _ends(form: tuple) -> tuple:
    """Returns the values of a choice, or the ends of a range."""
    return form[1:] if form[0] == "choice" else form[1:3]


def corners(space: Space) -> list[dict]:
    """Returns points that include both ends of every range and every choice.

    The first point has the first value of each field; each other point changes one field.
    """
    first = {field: form[1] for field, form in space.items()}
    return [first, *(first | {field: value} for field, form in space.items() for value in _ends(form)[1:])]


def _problem(kind: str, *values) -> str:
    """Returns what is wrong with a form, or ''."""
    if kind == "choice":
        if not values or len({(type(value), value) for value in values}) < len(values):
            return "needs values that all differ"
        strange = [value for value in values if not isinstance(value, bool | Real | str | None)]
        return f"{strange[0]!r} is not a number, string, True, False or None" if strange else ""
    if len(values) not in ((2,) if kind == "log" else (2, 3)):
        return f"{kind!r} must be followed by {FORMS[kind]}"
    number = int if kind == "int" else int | float
    if not all(isinstance(value, number) and not isinstance(value, bool) for value in values):
        return "all must be " + ("whole numbers" if kind == "int" else "numbers")
    low, high, *step = values
    if not low < high:
        return f"the range is empty; {low} must be below {high}"
    if kind == "log" and low <= 0:
        return "a logarithm needs numbers above 0"
    if step and (step[0] <= 0 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step[0]))):
        return f"steps of {step[0]} do not lead from {low} to {high}"
    return ""


def applied(config: ConfigDict, values: dict) -> ConfigDict:
    """Returns a copy of the config with these fields changed."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    return config


def grid(space: Space, seed: int) -> list[dict]:
    """Returns every combination of values, shuffled, so that the first trials do not all lie in one corner.

    Raises:
      ConfigError: a range has no steps, so it has infinitely many values.
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
    """Samples one given point of the grid.

    Optuna's GridSampler raises an error after its last point if the program asks for trials (`ask`), as we do.
    """

    def __init__(self, point: dict):
        super().__init__()
        self.point = point

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.point[param_name]


def sampler(kind: str, seed: int, number: int, points: list[dict]) -> optuna.samplers.BaseSampler:
    """Returns the sampler of trial `number`.

    Each trial has its own sampler and seed. Optuna does not store the random state, so one sampler for all trials would
    draw the first trials' values again after a restart.
    """
    if kind == "grid":
        return _Point(points[number])
    seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}[kind](seed=seed)


def suggest(trial: optuna.Trial, space: Space) -> dict:
    """Returns the values of a trial; Optuna draws them if the trial has none yet."""
    values = {}
    for field, (kind, *rest) in space.items():
        if kind == "choice":
            values[field] = trial.suggest_categorical(field, rest)
        elif kind == "int":
            values[field] = trial.suggest_int(field, *rest[:2], step=(*rest, 1)[2])
        else:
            values[field] = trial.suggest_float(field, *rest[:2], step=(*rest, None)[2], log=kind == "log")
    return values
