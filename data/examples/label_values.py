"""Labels and labelled texts as they stand in records. Every ValueError says what is wrong with the record."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.read.records import field

_LARGEST = float(np.finfo(np.float32).max)
_IGNORED = "-100"  # what torch's losses, and so published data, take for no label


def text_fields(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    """{'text': ..., 'pair': ...} or {'tokens': [...]} of a record; ValueError says what is wrong with it."""
    if settings["kind"] == "token":
        name = settings["text"] or "tokens"
        return {"tokens": [_string(word, name) for word in _array(field(record, name, "data.labels.text"), name)]}
    names = {"text": settings["text"] or "text"} | ({"pair": settings["pair"]} if settings["pair"] else {})
    return {what: _string(field(record, name, f"data.labels.{what}"), name) for what, name in names.items()}


def _string(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"field {name!r} is not a string but {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"field {name!r} is empty; mend the record or take it out")
    return text


def class_of(label: Any, name: str) -> str:
    if _is_none(label):
        raise ValueError(f"field {name!r} is {label!r}, which is no label; fill it in or take the record out")
    if not isinstance(label, str | int):  # True and False are integers
        raise ValueError(f"field {name!r} is {label!r}; a class is a string, an integer, true or false")
    return str(label)


def _is_none(label: Any) -> bool:
    """Whether a label says that there is none."""
    if isinstance(label, str):
        return label.strip() in ("", _IGNORED) or label.strip().lower() == "nan"  # as tables write it
    return label is None or label != label or label == int(_IGNORED)  # NaN differs from itself


def number_of(label: Any, name: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(label, bool) or not abs(number) <= _LARGEST:
        raise ValueError(f"field {name!r} is {label!r}; data.labels.kind 'number' needs a finite number")
    return number


def classes_of(labels: Any, name: str, count: int) -> list[str | None]:
    if len(_array(labels, name)) != count:
        raise ValueError(f"{count} words, but {len(labels)} {name}")
    if all(map(_is_none, labels)):
        raise ValueError(f"field {name!r} has no label; mend the record or take it out")
    return [None if _is_none(label) else class_of(label, name) for label in labels]


def _array(values: Any, name: str) -> list:
    if not isinstance(values, list):
        raise ValueError(f"field {name!r} is not an array but {type(values).__name__}; data.labels.kind is 'token'")
    return values
