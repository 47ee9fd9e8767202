"""Mesh axes, and the one table that maps dims of arrays to them.

A "dim" belongs to a tensor, an "axis" to the mesh. Parameters and activations name their dims logically; `RULES` maps
each name to mesh axes, so kinds of parallelism are rows of a table and not code:

    data     splits the batch; parameters are replicated
    stage    splits layers; micro-batches go from one device to the next (stack/pipeline.py)
    fsdp     splits the batch, and also parameters and optimizer state, which are gathered where they are used
    expert   like fsdp, but experts stay on their devices and tokens travel to them (experts/dispatch.py)
    context  splits rows along their length; keys and values travel (attention/ring.py); parameters as with fsdp
    tensor   splits heads, feed-forward and vocabulary inside each layer (Megatron, arXiv:1909.08053); between layers,
             where nothing is multiplied, it splits the length (sequence parallelism, arXiv:2205.05198)

Meshes are Explicit: an array's sharding is part of its type, so a mistake is an error while tracing instead of a slow
program. Every function here also works without a mesh (a notebook, a unit test): then nothing is sharded.
"""

import contextlib
import math
from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

# Slowest network first: `tensor` communicates most, so its devices are neighbors.
MESH_AXES = ("data", "stage", "fsdp", "expert", "context", "tensor")

_BATCH = ("stage", "data", "fsdp", "expert")  # outside of the pipeline, each stage has its own rows
_STORED = ("fsdp", "expert", "context")
RULES = (
    # dims of activations
    ("batch", _BATCH),
    ("length", "context"),
    ("stream", ("context", "tensor")),  # the length of the residual stream
    ("features", None),
    # dims of parameters, or of both
    ("layers", "stage"),
    ("embed", _STORED),
    ("expert_embed", ("fsdp", "context")),  # for arrays that are already split by experts
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
    ("choices", None),  # the experts that a router chooses from
    ("rank", None),
    ("slots", None),  # positions of a KV cache
)
_TABLE = dict(RULES)
# Dims along which parameters are stored in shards and gathered when they are used.
_GATHERED = ("embed", "expert_embed", "latent")
_STORED_ENTRIES = tuple(_TABLE[name] for name in _GATHERED)
# Dims that get no axis where the mesh does not split them. Two dims of one product may not have the same axis (queries
# and keys would), and scans over layers and experts need a dim without one.
_WHOLE_IN_ONE_PART = ("length", "layers", "experts")
# Axes that may span several slices, because they communicate little.
_MAY_BE_SLOW = ("data", "stage", "fsdp")


def make_mesh(shape: dict[str, int] | None = None, devices=None) -> jax.sharding.Mesh:
    """Returns an Explicit mesh over `devices` (default: all).

    A slow network joins several TPU slices. The `data` axis spans slices first; if there are more slices, the next axes
    of MESH_AXES that may be slow do too.

    Args:
      shape: devices per axis, e.g. {'fsdp': 4, 'tensor': 2}; absent axes have 1, and one may be -1 ("the rest").

    Raises:
      ValueError: an axis is unknown, or the product is not the number of devices.
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
    """Returns the devices of every axis, in the order of MESH_AXES; see `make_mesh` for arguments and errors."""
    for name in shape:
        if name not in MESH_AXES:
            raise ValueError(f"mesh: unknown axis {name!r}; the axes are {', '.join(MESH_AXES)}")
    sizes = {name: shape.get(name, 1) for name in MESH_AXES}
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh {shape}: sizes must be positive, and at most one may be -1")
    if free:
        sizes[free[0]] = devices // known
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh {shape}: its sizes multiply to {known if free else math.prod(sizes.values())}, "
            f"which does not fit the {devices} devices"
        )
    return sizes


def _between_slices(sizes: dict[str, int], slices: int) -> dict[str, int]:
    """Returns how many parts of each axis lie on different slices."""
    between, left = {}, slices
    for name, size in sizes.items():
        between[name] = math.gcd(size, left) if name in _MAY_BE_SLOW else 1
        left //= between[name]
    if left > 1:
        raise ValueError(
            f"mesh {sizes}: there are {slices} slices, and only the axes {', '.join(_MAY_BE_SLOW)} can span slices; "
            f"set data={slices}, or another of these axes to a multiple of it"
        )
    return between


@contextlib.contextmanager
def use_mesh(mesh: jax.sharding.Mesh | AbstractMesh):
    """Shards everything made inside by `RULES` over `mesh`. With an abstract mesh, code inside can only be traced."""
    with (
        jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, AbstractMesh) else jax.set_mesh(mesh),
        nnx.logical_axis_rules(tuple((name, spec(name)[0]) for name in _TABLE)),
    ):
        yield mesh


def has_mesh() -> bool:
    return not jax.sharding.get_abstract_mesh().empty


def spec(*logical: str | None, shape: tuple[int, ...] | None = None) -> PartitionSpec:
    """Returns the mesh axes of a tensor whose dims have these logical names.

    Args:
      shape: the tensor's shape. A dim that its devices do not divide (one token in decoding) is split over fewer
        axes, or not at all.
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
    """Returns the axes of the current mesh that split a tensor with these logical names; empty if none does.

    Axes that are already manual (inside a shard_map) are left out.
    """
    placed = out(*logical, shape=shape)
    names = () if placed is None else axes_of(placed)
    return names if any(size(name) > 1 for name in names) else ()


def axes_of(spec: PartitionSpec | tuple) -> tuple[str, ...]:
    """Returns the mesh axes that a spec names, in order."""
    return tuple(jax.tree.leaves(tuple(spec)))


def parts(logical: str) -> int:
    """Returns into how many parts the current mesh splits a dim of this logical name."""
    return math.prod(size(name) for name in jax.tree.leaves(_TABLE[logical]))


def size(axis: str) -> int:
    """Returns the number of devices along an axis of the current mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def place(x: jax.Array, *logical: str | None) -> jax.Array:
    """Returns `x` sharded by these logical names; communicates if it was sharded differently."""
    return jax.sharding.reshard(x, out(*logical, shape=x.shape)) if has_mesh() else x


def out(*logical: str | None, shape: tuple[int, ...] | None = None) -> PartitionSpec | None:
    """Returns `spec` for an `out_sharding=` argument, without manual axes (inside a shard_map); None without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    manual = set(mesh.manual_axes)
    return PartitionSpec(*(_drop(entry, manual) for entry in spec(*logical, shape=shape)))


def rows(x: jax.Array, of_B: jax.Array) -> jax.Array:
    """Returns x[of_B], rows of `x`, which may repeat, sharded like `x`."""
    return x.at[of_B].get(out_sharding=jax.typeof(x).sharding.spec if has_mesh() else None)


def gather(w: jax.Array) -> jax.Array:
    """Returns a parameter as its layer needs it, gathered along the dims that are only stored in shards (FSDP)."""
    if not has_mesh():
        return w
    stored = jax.typeof(w).sharding.spec
    wanted = PartitionSpec(*(None if entry in _STORED_ENTRIES else entry for entry in stored))
    return w if wanted == stored else jax.sharding.reshard(w, wanted)


def used(*logical: str | None) -> tuple[str | None, ...]:
    """Returns a parameter's dim names after `gather`: None for the dims that it gathers."""
    return tuple(None if name in _GATHERED else name for name in logical)


def batch_sharding(mesh: jax.sharding.Mesh, length: int = 0) -> jax.NamedSharding:
    """Returns the sharding of a batch's rows [B, T] of this length."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.NamedSharding(mesh, spec("batch", "length", shape=(0, length)))


def zigzag(length: int, parts: int) -> np.ndarray:
    """Returns an order of tokens, int [length], that gives each of `parts` devices an early and a late part of a row.

    Causal attention costs more for later tokens, so this balances the load (Llama 3, arXiv:2407.21783, section 3.3.2).
    Masks use segments and positions, so any order gives the same result.
    """
    stretches = np.arange(length).reshape(2 * parts, -1)
    return np.concatenate([stretches[[part, -1 - part]].reshape(-1) for part in range(parts)])


def batch_parts(mesh: jax.sharding.Mesh, devices: Iterable | None = None) -> tuple[list[int], int]:
    """Returns (sorted indices of the batch shards that `devices` hold, number of batch shards).

    Devices along an axis that does not split the batch hold the same shard. The shards of one process need not be
    adjacent: they aren't where the mesh follows a torus.

    Args:
      devices: default: the devices of this process.
    """
    devices = mesh.local_devices if devices is None else devices
    total = math.prod(mesh.shape[name] for name in _BATCH)
    places = jax.NamedSharding(mesh, PartitionSpec(_BATCH)).devices_indices_map((total,))
    return sorted({places[device][0].start or 0 for device in devices}), total


def platform() -> str:
    """Returns 'cpu', 'gpu' or 'tpu': the current mesh's (also when compiling for absent devices), else the host's."""
    device = jax.sharding.get_abstract_mesh().abstract_device if has_mesh() else None
    name = jax.default_backend() if device is None else (device.platform or jax.default_backend())
    return "gpu" if name in ("cuda", "rocm") else name


def _drop(entry, axes):
    if entry is None or isinstance(entry, str):
        return None if entry in axes else entry
    kept = tuple(axis for axis in entry if axis not in axes)
    return entry if kept == entry else kept[0] if len(kept) == 1 else (kept or None)
