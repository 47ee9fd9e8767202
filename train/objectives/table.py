"""The objectives by name: config.objective.name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.objectives.classification import Classification
from train.objectives.language import Language
from train.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {"language": Language, "labels": Classification}


def fields(name: str) -> dict[str, Any]:
    """The fields of an objective in a config, with their defaults; none for a name that no objective has."""
    own = dataclasses.fields(OBJECTIVES[name]) if name in OBJECTIVES else ()
    return {field.name: field.default for field in own if not field.metadata.get("from_data")}


def make(settings: Mapping[str, Any]) -> Objective:
    """The objective of the block `objective` of a config: its name, and the fields of its class.

    Raises:
      ValueError: an unknown name or field; lists what there is.
    """
    given = dict(settings)
    name = given.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"name is {name!r}; choose from {', '.join(OBJECTIVES)}")
    known = fields(name)
    if unknown := [field for field in given if field not in known]:
        raise ValueError(
            f"{unknown[0]} is no field of objective {name!r}, which has {', '.join(known)}; begin with a config of it "
            "(for labels configs/classify.py, or over a frozen model configs/classify.py:lora)"
        )
    return OBJECTIVES[name](**given)
