"""Reads labels and labelled texts from records; each ValueError says what is wrong with the record."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.read.records import field

_LARGEST = float(np.finfo(np.float32).max)
_IGNORED = "-100"  # PyTorch's losses ignore this label, so published data use it for "no label"


def text_fields(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    """Returns a record's {'text': ..., 'pair': ...} or {'tokens': [...]}.

    Args:
      record: as it was read.
      settings: the config's data.labels.

    Raises:
      ValueError: a field is missing, empty or of the wrong type.
    """
    if settings["kind"] == "token":
        name = settings["text"] or "tokens"
        return {"tokens": [_string(word, name) for word in _array(field(record, name, "data.labels.text"), name)]}
    names = {"text": settings["text"] or "text"} | ({"pair": settings["pair"]} if settings["pair"] else {})
    return {what: _string(field(record, name, f"data.labels.{what}"), name) for what, name in names.items()}


def _string(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"field {name!r} is not a string but {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"field {name!r} is empty; fix the record or remove it")
    return text


def class_of(label: Any, name: str) -> str:
    """Returns the class that a label names; `name` is its field."""
    if _is_none(label):
        raise ValueError(f"field {name!r} is {label!r}, which means no label; fill it in or remove the record")
    if not isinstance(label, str | int):  # True and False are integers
        raise ValueError(f"field {name!r} is {label!r}; a class is a string, an integer, true or false")
    return str(label)


def _is_none(label: Any) -> bool:
    """Returns whether a label means "no label"."""
    if isinstance(label, str):
        return label.strip() in ("", _IGNORED) or label.strip().lower() == "nan"  # the forms in tables
    return label is None or label != label or label == int(_IGNORED)  # NaN differs from itself


def number_of(label: Any, name: str) -> float:
    """Returns a label as a finite number; `name` is its field."""
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(label, bool) or not abs(number) <= _LARGEST:
        raise ValueError(f"field {name!r} is {label!r}; data.labels.kind 'number' needs a finite number")
    return number


def classes_of(labels: Any, name: str, count: int) -> list[str | None]:
    """Returns the class of each of `count` words, None for "no label"; `name` is the field of the labels."""
    if len(_array(labels, name)) != count:
        raise ValueError(f"{count} words, but {len(labels)} {name}")
    if all(map(_is_none, labels)):
        raise ValueError(f"field {name!r} has no label; fix the record or remove it")
    return [None if _is_none(label) else class_of(label, name) for label in labels]


def _array(values: Any, name: str) -> list:
    if not isinstance(values, list):
        raise ValueError(f"field {name!r} is not an array but {type(values).__name__}; data.labels.kind is 'token'")
    return values
