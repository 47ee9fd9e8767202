"""A config to begin with: every field with its default, and a model of a size. The experiments change them.

Every field can be set on the command line: --config.optimizer.learning_rate=3e-4
"""

from ml_collections import ConfigDict

from configs.parts.defaults import DEFAULTS
from configs.parts.meshes import meshed
from configs.sizes import sized


def base(argument: str, sizes: dict[str, dict], methods: tuple[str, ...] = ()) -> ConfigDict:
    """A run of the model that `argument` names: one of `sizes`, and after an @, if there is one, one of MESHES.

    Args:
      methods: what the argument could have been besides.
    """
    size, *mesh = argument.split("@", 1)
    config = ConfigDict(DEFAULTS | {"model": sized(size, sizes, methods) | DEFAULTS["model"]})
    config.mesh.update(meshed(*mesh) if mesh else {})
    return config
