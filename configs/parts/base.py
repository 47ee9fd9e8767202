"""The base of every experiment's config: all fields with their defaults (defaults.py), and a model of a named size.

Every field can be set on the command line: --config.optimizer.learning_rate=3e-4
"""

from ml_collections import ConfigDict

from configs.parts.defaults import DEFAULTS
from configs.parts.meshes import meshed
from configs.sizes import sized


def base(argument: str, sizes: dict[str, dict], methods: tuple[str, ...] = ()) -> ConfigDict:
    """Returns a config with all default fields and the model that `argument` names.

    Args:
      argument: SIZE or SIZE@MESH, with a name in `sizes` and a name in MESHES.
      sizes: architecture fields by name.
      methods: further arguments that the calling config accepts; the error for an unknown size lists them.

    Raises:
      ValueError: the size or the mesh is unknown.
    """
    size, *mesh = argument.split("@", 1)
    config = ConfigDict(DEFAULTS | {"model": sized(size, sizes, methods) | DEFAULTS["model"]})
    config.mesh.update(meshed(*mesh) if mesh else {})
    return config
