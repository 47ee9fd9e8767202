"""Checks every field of a config before any other check: that a run reads it, and that a number lies in its range.

Ranges stand beside what they belong to: in configs/parts/ranges.py for runs, in model/ for architectures, in the class
of an objective for its settings.
"""

import difflib

from ml_collections import ConfigDict

from configs.parts.ranges import OTHERS
from configs.parts.ranges import RANGES as OF_RUNS
from data.examples import kinds
from launch.program.checking import ConfigError
from launch.run.defaults import flat
from model import config as model_config
from model import parts, ranges
from train.objectives import table

_OF_MODELS = {f"model.{name}": interval for name, interval in model_config.RANGES.items()}
_OF_MODELS |= {f"model.{part}.{name}": interval for part, of in parts.RANGES.items() for name, interval in of.items()}


def known_ranges() -> dict[str, str]:
    """Returns the range of each numeric field of any config, by the field's name with dots."""
    objectives = {f"objective.{name}": interval for name, interval in table.ranges().items()}
    # Runs come last, because a config may leave to the data what a model must know, such as its vocabulary.
    return _OF_MODELS | objectives | OF_RUNS


def check(config: ConfigDict) -> None:
    """Checks all fields of a config.

    Raises:
      ConfigError: a number is outside its range, a field holds something else, or no run reads the field; the message
        names the field as a flag does.
    """
    of = known_ranges()
    for field, value in flat(config.to_dict()).items():
        if not known(field):
            near = difflib.get_close_matches(field, [*OF_RUNS, *OTHERS], 1)
            hint = f"; did you mean config.{near[0]}?" if near else ""
            raise ConfigError(f"config.{field} is a field that no run reads{hint}")
        if field in of:
            _check(f"config.{field}", value, of[field])
        elif f"{field}[]" in of and isinstance(value, tuple | list):
            for place, pair in enumerate(value):
                if isinstance(pair, tuple | list) and len(pair) == 2:  # the reader of the field refuses anything else
                    _check(f"config.{field}[{place}]", pair[1], of[f"{field}[]"])


def known(field: str) -> bool:
    """Returns whether a run reads a field of this name.

    The readers of the blocks `model`, `objective`, `adapt` and data.KIND refuse unknown fields themselves.
    """
    if field == "model_type":  # init_from adds it to a config
        return True
    first, second = (field.split(".") + [""])[:2]
    read_elsewhere = first in ("model", "objective", "adapt") or (first == "data" and second in kinds.KINDS)
    return read_elsewhere or field in OF_RUNS or f"{field}[]" in OF_RUNS or field in OTHERS


def _check(name: str, value, interval: str) -> None:
    if wrong := ranges.problem(value, interval):
        raise ConfigError(f"{name} is {value!r}; {wrong}")
