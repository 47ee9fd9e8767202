"""What a reward function is: `(prompt, completion, columns) -> number`.

`columns` holds all fields of the prompt's record. A user's function is a plain function. The ready ones are frozen
dataclasses that can also check a record before anything is sampled, so that a missing answer ends a run at its start.

Files in this folder import only the standard library (and, where they need one, a small package), so that a worker
process starts in milliseconds and never touches an accelerator.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Function = Callable[[str, str, Mapping[str, Any]], Any]


class RewardError(ValueError):
    """A reward function, its specification or a record does not fit. The message says what, where and what to do."""


class Settings(NamedTuple):
    """What ready functions need to know besides their argument."""

    seconds: float = 10.0  # the time that code may take
    packages: tuple[str, ...] = ()  # the packages that code may import


class Ready:
    """The base of the ready functions."""

    def check(self, columns: Mapping[str, Any]) -> None:
        """Raises a RewardError if no completion could be scored with this record."""

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        """Returns the reward, in [0, 1].

        Raises:
          RewardError: the record does not fit (`check`).
        """
        raise NotImplementedError


def column(columns: Mapping[str, Any], name: str) -> Any:
    """Returns a field of a record, or raises a RewardError that lists the fields that it has."""
    if name not in columns:
        raise RewardError(f"the record has no column {name!r}{nearest(name, columns)} (it has {listed(columns)})")
    return columns[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the known name that is most like this one, or ''."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Returns names as text, sorted: 'a, b, c', or 'none'."""
    return ", ".join(sorted(names)) or "none"
