"""Checks every number of a config against its range, before any other check, so that none meets a nan or a word."""

import difflib

from ml_collections import ConfigDict

from configs.parts.ranges import OTHERS
from configs.parts.ranges import RANGES as OF_RUNS
from launch.program.checking import ConfigError
from launch.run.defaults import flat
from model import config as model_config
from model import parts, ranges

RANGES = {f"model.{name}": interval for name, interval in model_config.RANGES.items()}
RANGES |= {f"model.{part}.{name}": interval for part, of in parts.RANGES.items() for name, interval in of.items()}
RANGES |= OF_RUNS  # last, as a config may leave to its data what a model has to know


def check(config: ConfigDict) -> None:
    """
    Raises:
      ConfigError: a number is outside of its range, a field holds something else, or no run has such a field; names the
        field as a flag does.
    """
    for field, value in flat(config.to_dict()).items():
        if not known(field):
            near = difflib.get_close_matches(field, [*OF_RUNS, *OTHERS], 1)
            hint = f"; did you mean config.{near[0]}?" if near else ""
            raise ConfigError(f"config.{field} is a field that no run reads{hint}")
        if field in RANGES:
            _check(f"config.{field}", value, RANGES[field])
        elif f"{field}[]" in RANGES and isinstance(value, tuple | list):
            for place, pair in enumerate(value):
                if isinstance(pair, tuple | list) and len(pair) == 2:  # what is not is refused by its reader
                    _check(f"config.{field}[{place}]", pair[1], RANGES[f"{field}[]"])


def known(field: str) -> bool:
    """Whether a run reads a field of this name; of `model`, `objective` and `adapt` their readers know."""
    block = field.partition(".")[0]
    if field == "model_type":  # init_from adds it to a config
        return True
    return field in RANGES or f"{field}[]" in RANGES or field in OTHERS or block in ("model", "objective", "adapt")


def _check(name: str, value, interval: str) -> None:
    if wrong := ranges.problem(value, interval):
        raise ConfigError(f"{name} is {value!r}; {wrong}")
