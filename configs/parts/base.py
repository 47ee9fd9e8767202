"""Builds a base config, every field with its default and a model of some size, for experiments to change.

Every field can be set on the command line: --config.optimizer.learning_rate=3e-4
"""

from ml_collections import ConfigDict

from configs.parts.defaults import DEFAULTS
from configs.parts.meshes import meshed
from configs.sizes import sized


def base(argument: str, sizes: dict[str, dict], methods: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the config of a run.

    Args:
      argument: one of `sizes`, optionally followed by an @ and one of MESHES.
      sizes: the model fields of each size.
      methods: names that the experiment also accepts as an argument, for the error message.

    Raises:
      ValueError: there is no such size or mesh.
    """
    size, *mesh = argument.split("@", 1)
    config = ConfigDict(DEFAULTS | {"model": sized(size, sizes, methods) | DEFAULTS["model"]})
    config.mesh.update(meshed(*mesh) if mesh else {})
    return config
