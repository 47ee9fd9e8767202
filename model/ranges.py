"""Ranges of numeric fields, written as text: 'int [1, inf)', 'float (0, 1]', 'int -1 or [1, inf)'.

Tables list a range next to each field's default: for models in config.py and parts.py, for runs in
configs/parts/ranges.py.
"""

import math
import re
from typing import Any

_FORM = re.compile(r"(int|float) (?:(\S+) or )?([\[(])(\S+), (\S+)([\])])")


def problem(value: Any, interval: str) -> str:
    """Returns what `value` must be instead, or '' if it is in the range.

    True and False are not numbers; an int is accepted as a float, but not a float as an int.

    Raises:
      ValueError: `interval` is not a range.
    """
    found = _FORM.fullmatch(interval)
    if not found:
        raise ValueError(f"{interval!r} is not a range like 'int [1, inf)' or 'float (0, 1]'")
    kind, besides, left, low, high, right = found.groups()
    if besides is not None and (value is None if besides == "None" else type(value) is int and value == int(besides)):
        return ""
    number = isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)
    if number and (isinstance(value, int) or math.isfinite(value)):
        above = value > float(low) or (left == "[" and value == float(low))
        below = value < float(high) or (right == "]" and value == float(high))
        if above and below:
            return ""
    what = "a whole number" if kind == "int" else "a number"
    return f"it must be {besides + ' or ' if besides else ''}{what} {_words(left, low, high, right)}"


def check(value: Any, interval: str, name: str) -> None:
    """Checks a field's value.

    Raises:
      ValueError: the value of the field `name` is outside of the range.
    """
    if wrong := problem(value, interval):
        raise ValueError(f"{name} is {value!r}; {wrong}")


def _words(left: str, low: str, high: str, right: str) -> str:
    if low == "-inf":
        return "that is finite" if high == "inf" else f"{'up to' if right == ']' else 'below'} {high}"
    if high == "inf":
        return f"of at least {low}" if left == "[" else f"above {low}"
    return f"from {low} to {high}" if left + right == "[]" else f"in {left}{low}, {high}{right}"
