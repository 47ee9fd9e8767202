"""Checks every number of a config against its range, before any other check, so that none meets a nan or a word."""

from ml_collections import ConfigDict

from configs.ranges import RANGES as OF_RUNS
from launch import workdirs
from launch.checking import ConfigError
from model import config as model_config
from model import parts, ranges

RANGES = {f"model.{name}": interval for name, interval in model_config.RANGES.items()}
RANGES |= {f"model.{part}.{name}": interval for part, of in parts.RANGES.items() for name, interval in of.items()}
RANGES |= OF_RUNS  # last, as a config may leave to its data what a model has to know


def check(config: ConfigDict) -> None:
    """
    Raises:
      ConfigError: a number is outside of its range, or the field holds something else; names the field as a flag does.
    """
    for field, value in workdirs.flat(config.to_dict()).items():
        if field in RANGES:
            _check(f"config.{field}", value, RANGES[field])
        elif f"{field}[]" in RANGES and isinstance(value, tuple | list):
            for place, pair in enumerate(value):
                if isinstance(pair, tuple | list) and len(pair) == 2:  # what is not is refused by its reader
                    _check(f"config.{field}[{place}]", pair[1], RANGES[f"{field}[]"])


def _check(name: str, value, interval: str) -> None:
    if wrong := ranges.problem(value, interval):
        raise ConfigError(f"{name} is {value!r}; {wrong}")
