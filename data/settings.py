"""Blocks of a config: their fields and defaults; a field that isn't there is named with the closest one that is."""

import difflib
from collections.abc import Mapping
from typing import Any

from data.batch import DataError


def merged(given: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The defaults in `fields`, overwritten by `given`, the block `where` of a config."""
    for key in given:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields)}."
            raise DataError(f"Unknown field {where}.{key}: {hint}")
    return {**fields, **given}
