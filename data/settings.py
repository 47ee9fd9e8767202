"""Fills in the defaults of a config's blocks, and refuses unknown fields with a hint."""

import difflib
from collections.abc import Mapping
from typing import Any

from data.batch import DataError


def merged(given: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the defaults in `fields`, overwritten by `given`.

    Args:
      given: the fields that the config sets.
      fields: all fields with their defaults.
      where: the block's name in the config, for error messages.

    Raises:
      DataError: `given` has an unknown field.
    """
    for key in given:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(fields)}."
            raise DataError(f"Unknown field {where}.{key}: {hint}")
    return {**fields, **given}
