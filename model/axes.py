"""Mesh axes, and the one table that says which dim of an array lies on which of them.

A "dim" belongs to a tensor, an "axis" to the mesh. Parameters and activations name their dims logically; `RULES` maps
each name to mesh axes, so data, fully sharded (FSDP) and tensor parallelism are rows of a table and not code:

    data    the batch is split; parameters are copied
    fsdp    the batch is split as well; parameters and optimizer state are split too and gathered where they are used
    tensor  heads, feed-forward and vocabulary are split inside each layer (Megatron, arXiv:1909.08053)

Meshes are Explicit: an array's sharding is part of its type, so a mistake is an error while tracing and not a slow
program. Every function here also works with no mesh set (a notebook, a unit test): then nothing is sharded.
"""

import contextlib
import math

import jax
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

# Slowest network first: `tensor` talks most, so its devices are neighbours.
MESH_AXES = ("data", "fsdp", "tensor")

RULES = (
    # dims of activations
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("features", None),
    # dims of parameters, or of both
    ("layers", None),
    ("embed", "fsdp"),
    ("norm", None),
    ("positions", None),
    ("buckets", None),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("kv_heads", "tensor"),
    ("group", None),
    ("head_dim", None),
    ("latent", "fsdp"),
    ("experts", None),
    ("rank", None),
)
# Parameters are stored split over these axes, and gathered at the moment they are used.
STORAGE_AXES = ("fsdp",)
_TABLE = dict(RULES)


def make_mesh(shape: dict[str, int] | None = None, devices=None) -> jax.sharding.Mesh:
    """An Explicit mesh over `devices` (all of them by default).

    Args:
      shape: devices per axis, e.g. {'fsdp': 4, 'tensor': 2}; absent axes are 1, and at most one may be -1 ("the rest").

    Raises:
      ValueError: an unknown axis, or a product that is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = dict(shape or {"data": -1})
    for name in shape:
        if name not in MESH_AXES:
            raise ValueError(f"mesh: unknown axis {name!r}; the axes are {', '.join(MESH_AXES)}")
    sizes = {name: shape.get(name, 1) for name in MESH_AXES}
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh {shape}: sizes are positive, and at most one of them may be -1")
    if free:
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh {shape}: its sizes multiply to {known if free else math.prod(sizes.values())}, "
            f"which does not fit the {len(devices)} devices there are"
        )
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, devices=devices, axis_types=(AxisType.Explicit,) * len(MESH_AXES)
    )


@contextlib.contextmanager
def use_mesh(mesh: jax.sharding.Mesh):
    """Everything made inside is born sharded by `RULES` over `mesh`."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        yield mesh


def has_mesh() -> bool:
    return not jax.sharding.get_abstract_mesh().empty


def spec(*logical: str | None) -> PartitionSpec:
    """The mesh axes of a tensor whose dims have these logical names."""
    return PartitionSpec(*(None if name is None else _TABLE[name] for name in logical))


def axis_names(logical: str) -> tuple[str, ...]:
    """The mesh axes over which a dim of this logical name is split on the mesh that is set; none where it is whole."""
    names = _TABLE[logical] or ()
    names = (names,) if isinstance(names, str) else names
    shape = jax.sharding.get_abstract_mesh().shape
    return names if any(shape.get(name, 1) > 1 for name in names) else ()


def parts(logical: str) -> int:
    """Into how many parts a dim of this logical name is split on the mesh that is set."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in axis_names(logical))


def place(x: jax.Array, *logical: str | None) -> jax.Array:
    """`x` with its dims split by these logical names; communicates where they were split otherwise."""
    return jax.sharding.reshard(x, spec(*logical)) if has_mesh() else x


def out(*logical: str | None) -> PartitionSpec | None:
    """`spec` for an `out_sharding=` argument: None where no mesh is set, and inside a shard_map's manual axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    manual = set(mesh.manual_axes)
    return PartitionSpec(*(_drop(entry, manual) for entry in spec(*logical)))


def gather(w: jax.Array) -> jax.Array:
    """A parameter as its layer needs it: whole along `STORAGE_AXES` (the all-gather of FSDP)."""
    if not has_mesh():
        return w
    stored = jax.typeof(w).sharding.spec
    wanted = PartitionSpec(*(_drop(entry, STORAGE_AXES) for entry in stored))
    return w if wanted == stored else jax.sharding.reshard(w, wanted)


def used(*logical: str | None) -> tuple[str | None, ...]:
    """The names of a parameter's dims without those that `gather` makes whole."""
    return tuple(None if name is None or _TABLE[name] in STORAGE_AXES else name for name in logical)


def batch_sharding(mesh: jax.sharding.Mesh, ndim: int = 2) -> jax.NamedSharding:
    """Where a batch's rows lie; `ndim` counts the dims of the array, the first being the batch."""
    return jax.NamedSharding(mesh, spec("batch", *(None,) * (ndim - 1)))


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': of the mesh that is set (also when compiling for absent devices), else of the host."""
    device = jax.sharding.get_abstract_mesh().abstract_device if has_mesh() else None
    name = jax.default_backend() if device is None else (device.platform or jax.default_backend())
    return "gpu" if name in ("cuda", "rocm") else name


def _drop(entry, axes):
    if entry is None or isinstance(entry, str):
        return None if entry in axes else entry
    kept = tuple(axis for axis in entry if axis not in axes)
    return kept[0] if len(kept) == 1 else (kept or None)
