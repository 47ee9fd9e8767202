"""The objectives by name: config.objective.name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.objectives.classification import Classification
from train.objectives.language import Language
from train.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {"language": Language, "labels": Classification}


def make(settings: Mapping[str, Any]) -> Objective:
    """The objective of the block `objective` of a config: its name, and the fields of its class.

    Raises:
      ValueError: an unknown name or field; lists what there is.
    """
    fields = dict(settings)
    name = fields.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"config.objective.name is {name!r}; choose from {', '.join(OBJECTIVES)}")
    kind = OBJECTIVES[name]
    known = [field.name for field in dataclasses.fields(kind) if not field.metadata.get("from_data")]
    if unknown := [field for field in fields if field not in known]:
        raise ValueError(
            f"config.objective.{unknown[0]} is no field of objective {name!r}, which has {', '.join(known)}; begin "
            "with a config of it (for labels configs/classify.py, or over a frozen model configs/classify.py:lora)"
        )
    return kind(**fields)
