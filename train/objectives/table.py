"""The table of objectives by their name in config.objective.name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.objectives.classification import Classification
from train.objectives.kto import Kto
from train.objectives.language import Language
from train.objectives.objective import Objective
from train.objectives.policy import Policy
from train.objectives.preference import Preference
from train.objectives.reward import Reward

OBJECTIVES: dict[str, type[Objective]] = {
    "language": Language,
    "labels": Classification,
    "preference": Preference,
    "kto": Kto,
    "reward": Reward,
    "policy": Policy,
}


def fields(name: str) -> dict[str, Any]:
    """Returns the fields that config.objective may have under this name, with their defaults; {} for unknown names."""
    own = dataclasses.fields(OBJECTIVES[name]) if name in OBJECTIVES else ()
    return {field.name: field.default for field in own if not field.metadata.get("from_data")}


def ranges() -> dict[str, str]:
    """Returns the range of each numeric field that config.objective may have under any name."""
    return {field: interval for kind in OBJECTIVES.values() for field, interval in kind.ranges.items()}


def make(settings: Mapping[str, Any]) -> Objective:
    """Returns the objective that config.objective describes: a name, and fields of the class with that name.

    Raises:
      ValueError: the name or a field is unknown; the message lists the known ones.
    """
    given = dict(settings)
    name = given.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"name is {name!r}; choose from {', '.join(OBJECTIVES)}")
    known = fields(name)
    if unknown := [field for field in given if field not in known]:
        config = OBJECTIVES[name].config
        start = f"; start from a config with this objective ({config})" if config else ""
        raise ValueError(f"{unknown[0]} is not a field of objective {name!r}, which has {', '.join(known)}{start}")
    return OBJECTIVES[name](**given)
