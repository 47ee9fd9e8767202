"""Checks every number of a config against its range.

This comes before all other checks, so that those meet neither a nan nor a string in place of a number.
"""

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
RANGES |= OF_RUNS  # last: a config may leave fields to its data (vocab_size 0) that a model needs


def check(config: ConfigDict) -> None:
    """Checks every field of a config.

    Raises:
      ConfigError: a number is outside of its range, a value has another type, or no run has such a field. The message
        names the field as its flag does.
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
                if (
                    isinstance(pair, tuple | list) and len(pair) == 2
                ):  # other items are refused by the code that reads the list
                    _check(f"config.{field}[{place}]", pair[1], RANGES[f"{field}[]"])


def known(field: str) -> bool:
    """Returns whether a run reads a field of this name. The blocks `model`, `objective` and `adapt` check their own."""
    block = field.partition(".")[0]
    if field == "model_type":  # init_from adds it to a config
        return True
    return field in RANGES or f"{field}[]" in RANGES or field in OTHERS or block in ("model", "objective", "adapt")


def _check(name: str, value, interval: str) -> None:
    if wrong := ranges.problem(value, interval):
        raise ConfigError(f"{name} is {value!r}; {wrong}")
