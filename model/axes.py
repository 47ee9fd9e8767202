"""Mesh axes, and the one table that says which dim of an array lies on which of them.

A "dim" belongs to a tensor, an "axis" to the mesh. Parameters and activations name their dims logically; `RULES` maps
each name to mesh axes, so kinds of parallelism are rows of a table and not code:

    data     the batch is split; parameters are copied
    stage    layers are split, and micro-batches go from one device to the next (pipeline.py)
    fsdp     the batch is split as well; parameters and optimizer state are split too and gathered where they are used
    expert   as fsdp, but experts stay where they are, and tokens go to them (dispatch.py)
    context  rows are split along their length, and keys and values travel (ring.py); parameters as by fsdp
    tensor   heads, feed-forward and vocabulary are split inside each layer (Megatron, arXiv:1909.08053); between them,
             where nothing is multiplied, the length is (arXiv:2205.05198)

Meshes are Explicit: an array's sharding is part of its type, so a mistake is an error while tracing and not a slow
program. Every function here also works with no mesh set (a notebook, a unit test): then nothing is sharded.
"""

import contextlib
import math
from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

# Slowest network first: `tensor` talks most, so its devices are neighbours.
MESH_AXES = ("data", "stage", "fsdp", "expert", "context", "tensor")

_STORED = ("fsdp", "expert", "context")
RULES = (
    # dims of activations
    ("batch", ("stage", "data", "fsdp", "expert")),  # a stage has rows of its own where it is no stage
    ("length", "context"),
    ("stream", ("context", "tensor")),  # the length of the residual stream
    ("features", None),
    # dims of parameters, or of both
    ("layers", "stage"),
    ("embed", _STORED),
    ("expert_embed", ("fsdp", "context")),  # of what is split by experts already
    ("norm", None),
    ("positions", None),
    ("buckets", None),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("kv_heads", "tensor"),
    ("group", None),
    ("head_dim", None),
    ("latent", _STORED),
    ("experts", "expert"),
    ("choices", None),  # experts, as what a router chooses from
    ("rank", None),
    ("slots", None),  # of a cache
)
_TABLE = dict(RULES)
# Dims along which parameters are only stored in parts, and gathered at the moment they are used.
_GATHERED = ("embed", "expert_embed", "latent")
_STORED_ENTRIES = tuple(_TABLE[name] for name in _GATHERED)
# Dims that are not split by their type either on a mesh that would not split them: queries and keys may meet there, and
# scans go over layers and experts.
_WHOLE_IN_ONE_PART = ("length", "layers", "experts")
# Axes that may lie between slices, as they talk little.
_MAY_BE_SLOW = ("data", "stage", "fsdp")


def make_mesh(shape: dict[str, int] | None = None, devices=None) -> jax.sharding.Mesh:
    """An Explicit mesh over `devices` (all of them by default).

    Several slices of TPUs are joined by a slow network: `data` goes over it, then, where there are more slices, the
    axes behind it in MESH_AXES.

    Args:
      shape: devices per axis, e.g. {'fsdp': 4, 'tensor': 2}; absent axes are 1, and at most one may be -1 ("the rest").

    Raises:
      ValueError: an unknown axis, or a product that is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(shape or {"data": -1}, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    between = _between_slices(sizes, slices)
    within = [size // between[name] for name, size in sizes.items()]
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            within, tuple(between.values()), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def mesh_sizes(shape: dict[str, int], devices: int) -> dict[str, int]:
    """Devices of every axis, in the order of MESH_AXES; arguments and errors as of `make_mesh`."""
    for name in shape:
        if name not in MESH_AXES:
            raise ValueError(f"mesh: unknown axis {name!r}; the axes are {', '.join(MESH_AXES)}")
    sizes = {name: shape.get(name, 1) for name in MESH_AXES}
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh {shape}: sizes are positive, and at most one of them may be -1")
    if free:
        sizes[free[0]] = devices // known
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh {shape}: its sizes multiply to {known if free else math.prod(sizes.values())}, "
            f"which does not fit the {devices} devices there are"
        )
    return sizes


def _between_slices(sizes: dict[str, int], slices: int) -> dict[str, int]:
    """How much of each axis lies between slices."""
    between, left = {}, slices
    for name, size in sizes.items():
        between[name] = math.gcd(size, left) if name in _MAY_BE_SLOW else 1
        left //= between[name]
    if left > 1:
        raise ValueError(
            f"mesh {sizes}: there are {slices} slices, and what lies between them must be of {', '.join(_MAY_BE_SLOW)}:"
            f" make data={slices}, or another of these a multiple of it"
        )
    return between


@contextlib.contextmanager
def use_mesh(mesh: jax.sharding.Mesh | AbstractMesh):
    """Everything made inside is born sharded by `RULES` over `mesh`; of an abstract one it can only be traced."""
    set_mesh = jax.sharding.use_abstract_mesh if isinstance(mesh, AbstractMesh) else jax.set_mesh
    with set_mesh(mesh), nnx.logical_axis_rules(tuple((name, spec(name)[0]) for name in _TABLE)):
        yield mesh


def has_mesh() -> bool:
    return not jax.sharding.get_abstract_mesh().empty


def spec(*logical: str | None, shape: tuple[int, ...] | None = None) -> PartitionSpec:
    """The mesh axes of a tensor whose dims have these logical names.

    Args:
      shape: of the tensor; a length that its parts of the mesh do not divide (one token in decoding) is split into
        fewer, or whole.
    """
    sizes = (0,) * len(logical) if shape is None else shape
    names = (_fitting(*pair) for pair in zip(logical, sizes, strict=True))
    return PartitionSpec(*(None if name is None else _TABLE[name] for name in names))


def _fitting(name: str | None, length: int) -> str | None:
    if name == "stream" and (size("tensor") == 1 or length % parts(name)):
        name = "length"
    whole = name in _WHOLE_IN_ONE_PART and (parts(name) == 1 or length % parts(name))
    return None if whole else name


def splitting(*logical: str, shape: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """The axes of the mesh that is set over which a tensor with these logical names is split, without those that are
    manual there already; none where it is whole."""
    names = axes_of(out(*logical, shape=shape)) if has_mesh() else ()
    return names if any(size(name) > 1 for name in names) else ()


def axes_of(spec: PartitionSpec) -> tuple[str, ...]:
    return tuple(jax.tree.leaves(tuple(spec)))


def parts(logical: str) -> int:
    """Into how many parts a dim of this logical name is split on the mesh that is set."""
    return math.prod(size(name) for name in jax.tree.leaves(_TABLE[logical]))


def size(axis: str) -> int:
    """Devices along an axis of the mesh that is set."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def place(x: jax.Array, *logical: str | None) -> jax.Array:
    """`x` with its dims split by these logical names; communicates where they were split otherwise."""
    return jax.sharding.reshard(x, out(*logical, shape=x.shape)) if has_mesh() else x


def out(*logical: str | None, shape: tuple[int, ...] | None = None) -> PartitionSpec | None:
    """`spec` for an `out_sharding=` argument: None where no mesh is set, and inside a shard_map's manual axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    manual = set(mesh.manual_axes)
    return PartitionSpec(*(_drop(entry, manual) for entry in spec(*logical, shape=shape)))


def gather(w: jax.Array) -> jax.Array:
    """A parameter as its layer needs it: whole along the dims that are only stored in parts (FSDP's all-gather)."""
    if not has_mesh():
        return w
    stored = jax.typeof(w).sharding.spec
    wanted = PartitionSpec(*(None if entry in _STORED_ENTRIES else entry for entry in stored))
    return w if wanted == stored else jax.sharding.reshard(w, wanted)


def used(*logical: str | None) -> tuple[str | None, ...]:
    """The names of a parameter's dims without those that `gather` makes whole."""
    return tuple(None if name in _GATHERED else name for name in logical)


def batch_sharding(mesh: jax.sharding.Mesh, length: int = 0) -> jax.NamedSharding:
    """Where rows [B, T] of a batch lie, of this length."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.NamedSharding(mesh, spec("batch", "length", shape=(0, length)))


def zigzag(length: int, parts: int) -> np.ndarray:
    """The order of tokens in which each of `parts` devices has an early and a late stretch of a row, [length] int: as
    causal attention has more to do the later a token is, all have as much (Llama 3, arXiv:2407.21783, section 3.3.2).
    Segments and positions say who sees whom, so any order gives the same result."""
    stretches = np.arange(length).reshape(2 * parts, -1)
    return np.concatenate([stretches[[part, -1 - part]].reshape(-1) for part in range(parts)])


def batch_parts(mesh: jax.sharding.Mesh, devices: Iterable | None = None) -> tuple[list[int], int]:
    """(numbers of the parts of a batch that `devices` hold, in order; into how many parts it is split). Devices along
    an axis that does not split the batch hold the same part, and those of a process need not hold adjacent ones: where
    the mesh follows a torus, they don't.

    Args:
      devices: by default those of this process.
    """
    devices = mesh.local_devices if devices is None else devices
    names = _TABLE["batch"]
    total = math.prod(mesh.shape[name] for name in names)
    places = jax.NamedSharding(mesh, PartitionSpec(names)).devices_indices_map((total,))
    return sorted({places[device][0].start or 0 for device in devices}), total


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': of the mesh that is set (also when compiling for absent devices), else of the host."""
    device = jax.sharding.get_abstract_mesh().abstract_device if has_mesh() else None
    name = jax.default_backend() if device is None else (device.platform or jax.default_backend())
    return "gpu" if name in ("cuda", "rocm") else name


def _drop(entry, axes):
    if entry is None or isinstance(entry, str):
        return None if entry in axes else entry
    kept = tuple(axis for axis in entry if axis not in axes)
    return entry if kept == entry else kept[0] if len(kept) == 1 else (kept or None)
