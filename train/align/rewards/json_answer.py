"""Rewards for answers in JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from train.align.rewards.fences import last_block
from train.align.rewards.reward import Ready, RewardError, column


@dataclasses.dataclass(frozen=True)
class Json(Ready):
    """1 if the completion is a JSON object or array, or is valid against the column's JSON schema; else 0.

    The last fenced block counts if there is one, else the whole text. A bare number or word is JSON too, but by
    accident, so it is wrong unless a schema asks for it. NaN and Infinity, which Python reads, are not JSON.
    """

    column: str = ""

    def validator(self, columns: Mapping[str, Any]):
        """Returns the schema's validator, of the draft that the schema names, or else of the newest."""
        import jsonschema  # takes 0.1 s, and most runs have no schema
        import referencing

        schema = column(columns, self.column)
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
            kind.check_schema(schema)
        except (ValueError, TypeError, AttributeError, jsonschema.SchemaError) as error:
            reason = getattr(error, "message", error)
            raise RewardError(f"column {self.column!r} is not a JSON schema: {reason!s:.200}") from error
        return kind(schema, registry=referencing.Registry())  # an empty one, which never reads a $ref from the network

    def check(self, columns: Mapping[str, Any]) -> None:
        if self.column:
            self.validator(columns)

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        validator = self.validator(columns) if self.column else None
        try:
            value = json.loads(last_block(completion, ("json",)), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        if validator is None:
            return float(isinstance(value, dict | list))
        return float(validator.is_valid(value))


def _refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")
