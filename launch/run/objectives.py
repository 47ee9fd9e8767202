"""The block `objective` of a config as an object (train/objectives/)."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from launch.program.checking import checking
from train.objectives import table
from train.objectives.objective import Objective


def make(config: ConfigDict, labels: Mapping | None = None) -> Objective:
    """
    Args:
      labels: what is known of those that are learnt (Prepared.labels).

    Raises:
      ConfigError: an unknown objective, an unknown field, or a value that is not possible.
    """
    with checking("config.objective"):
        return table.make(config.objective).about(labels)
