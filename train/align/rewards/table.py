"""The ready reward functions by name, and the functions that specifications name.

To add one, write a class in this folder and add a line here.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from train.align.rewards import user_file
from train.align.rewards.json_answer import Json
from train.align.rewards.language import Language
from train.align.rewards.numeric import Numeric
from train.align.rewards.python_tests import PythonTests
from train.align.rewards.reward import Function, Ready, RewardError, Settings, listed, nearest
from train.align.rewards.text import Exact, Length, Pattern


class Row(NamedTuple):
    """A ready function."""

    argument: str  # what follows the name and a colon; in brackets if it can be left out
    make: Callable[[str, Settings], Ready]


READY = {
    "exact": Row("COLUMN", lambda argument, _: Exact(argument)),
    "numeric": Row("COLUMN", lambda argument, _: Numeric(argument)),
    "regex": Row("PATTERN", lambda argument, _: Pattern.of(argument)),
    "json": Row("[COLUMN]", lambda argument, _: Json(argument)),
    "length": Row("LOW-HIGH", lambda argument, _: Length.of(argument)),
    "language": Row("CODE", lambda argument, _: Language.of(argument)),
    "python": Row("COLUMN", PythonTests),
}


def load(spec: str, settings: Settings) -> Function:
    """Returns the function that a specification names: 'NAME', 'NAME:ARGUMENT' or 'path/to/file.py:function'.

    Raises:
      RewardError: there is no such function, or its argument does not fit, or this machine lacks what it needs.
    """
    if of_user(spec):
        return user_file.load(spec)
    name, _, argument = spec.partition(":")
    if name not in READY:
        ready = listed(_form(name) for name in READY)
        raise RewardError(
            f"there is no reward function {name!r}{nearest(name, READY)} "
            f"Ready ones are {ready}; your own is path/to/file.py:function"
        )
    row = READY[name]
    if not argument and not row.argument.startswith("["):
        raise RewardError(f"the reward {name!r} needs an argument: {_form(name)}")
    return row.make(argument, settings)


def of_user(spec: str) -> bool:
    """Returns whether a specification names a function of a user's file."""
    return spec.endswith(".py") or spec.rpartition(":")[0].endswith(".py")


def files(specs: Iterable[str]) -> list[Path]:
    """Returns the user's files that specifications name, each once."""
    return sorted({Path(spec.rpartition(":")[0]) for spec in specs if of_user(spec)})


def _form(name: str) -> str:
    argument = READY[name].argument
    return f"{name}[:{argument[1:]}" if argument.startswith("[") else f"{name}:{argument}"
