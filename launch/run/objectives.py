"""The objectives by name, and the block `objective` of a config."""

import inspect
from collections.abc import Mapping

from ml_collections import ConfigDict

from launch.program.checking import ConfigError, checking
from train.objectives.classification import labels
from train.objectives.language import language

OBJECTIVES = {"language": language, "labels": labels}


def fields(name: str) -> dict:
    """The fields of an objective with their defaults; none for a name that no objective has."""
    parameters = inspect.signature(OBJECTIVES[name]).parameters if name in OBJECTIVES else {}
    # The names of classes come from the data.
    return {field: parameter.default for field, parameter in parameters.items() if field != "names"}


def make(config: ConfigDict, labels: Mapping | None = None):
    """The objective of a config, checked; `labels`: what is known of those that are learnt (Prepared.labels)."""
    settings = config.objective.to_dict()
    name = settings.pop("name")
    if name not in OBJECTIVES:
        raise ConfigError(f"config.objective.name is {name!r}; choose from {', '.join(OBJECTIVES)}")
    known = fields(name)
    if unknown := [field for field in settings if field not in known]:
        raise ConfigError(
            f"config.objective.{unknown[0]} is no field of objective {name!r}, which has {', '.join(known)}; begin "
            "with a config of it (of labels configs/classify.py, or over a frozen model configs/classify.py:lora)"
        )
    if labels and "names" in labels:
        settings["names"] = labels["names"]
    with checking("config.objective"):
        return OBJECTIVES[name](**settings)
