"""Fills a sharded model from a checkpoint folder, and writes one, by a family's table (table.py, layout.py).

Both process their tensors one at a time, so a host holds about one tensor besides the model itself. Every process reads
only what its devices keep; process 0 writes.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from model.interop import table as tables
from model.interop.files import tensorfile
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.interop.files.writer import Writer
from model.interop.layout import Range
from model.interop.table import Piece, Table
from model.weights import by_name


class Source(NamedTuple):
    """Where a part of a parameter is read from."""

    piece: Piece
    name: str  # tensor name in the folder
    sizes: dict[str, int]  # of dims, see table.Theirs


def load(abstract_model, table: Table, folder: Folder):
    """Returns the model from the tensors of `folder`, with the shardings and dtypes of `abstract_model`.

    Args:
      abstract_model: an NNX module of jax.ShapeDtypeStruct, with shardings if there is a mesh.

    Raises:
      CheckpointFolderError: tensors are missing, unexpected or of another shape, which is checked before any is read;
        or a file is damaged.
      ValueError: the table contradicts itself or the model.
    """
    leaves: Mapping[str, Any] = by_name(abstract_model)  # shapes, because the model is abstract
    wanted = tables.expected(table, leaves)
    sources: dict[str, list[Source]] = {path: [] for path in leaves}
    for name, file_name in tables.match(table, wanted, folder).items():
        for piece in wanted[name].pieces:
            sources[piece.entry.path].append(Source(piece, file_name, wanted[name].sizes))
    constants = {entry.path: entry.absent for entry in table.entries if entry.absent is not None}
    # Large tensors first, while the model is small, so that the peak memory is hardly more than the model.
    largest_first = sorted(leaves, key=lambda path: -math.prod(leaves[path].shape) / max(1, len(sources[path])))
    filled = {}
    # A program on one device fills that device's part, so the current mesh must not affect it.
    with _own_mesh():
        for path in largest_first:
            leaf = leaves[path]
            filled[path] = _read(leaf, sources[path], folder) if sources[path] else _constant(leaf, constants[path])
    return jax.tree.unflatten(jax.tree.structure(abstract_model), [filled[path] for path in leaves])


def save(model, table: Table, path, files: Mapping[str, str], dtype=None, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes the model as a checkpoint folder. With several processes, all of them must call it.

    Args:
      path: a folder that does not exist or is empty; if writing fails, it is unchanged.
      files: contents of additional text files: config.json, tokenizer.json.
      dtype: of the tensors; None: the parameters'.

    Raises:
      CheckpointFolderError: the folder can't be written, or their format lacks a parameter.
      ValueError: the table contradicts itself or the model.
    """
    leaves = by_name(model)
    wanted = tables.expected(table, leaves)
    for entry in table.entries:
        if entry.absent is not None and entry.path in leaves:
            with _own_mesh(leaves[entry.path]):
                unused = bool(jnp.all(leaves[entry.path] == entry.absent))
            if not unused:
                raise CheckpointFolderError(
                    f"their format has no place for parameter {entry.path}, unless all its values are {entry.absent:g}"
                )
            wanted = {name: theirs for name, theirs in wanted.items() if entry is not theirs.pieces[0].entry}
    order = sorted(wanted, key=_natural)
    kind = lambda name: np.dtype(dtype or leaves[wanted[name].pieces[0].entry.path].dtype)

    def joined(name):
        tensor = np.empty(wanted[name].shape, kind(name))
        for entry, index in wanted[name].pieces:
            entry.put(_gathered(leaves[entry.path], index, kind(name)), tensor, wanted[name].sizes)
        return tensor

    if jax.process_index() != 0:
        for name in order:  # takes part in gathering
            joined(name)
        return
    with Writer(path, {name: (wanted[name].shape, kind(name)) for name in order}, files, max_shard_bytes) as writer:
        for name in order:
            writer.write(name, joined(name))


def _read(leaf: jax.ShapeDtypeStruct, sources: list[Source], folder: Folder) -> jax.Array:
    """Reads a parameter from its tensors.

    Each device keeps a box of the parameter. Each of their tensors has one index of the stacked dims (here the layer).
    It is read once, over the hull of all boxes with this index, and each device gets its own slice of the hull:

        parameter [layer 4, embed 8]      layers   embed         tensor of layer 1, [embed 8]
          device 0                          0:2     0:3            -> [0:3] into row 1 of its box
          device 1                          0:2     3:6            -> [3:6] into row 1 of its box
          device 2 (other devices have      2:4     0:3            nothing
          device 3  the rest of embed)      2:4     3:6            nothing
                                                                 read: [0:6]
    """
    sharding = _sharding(leaf)
    boxes = {
        device: [part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True)]
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items()
    }
    parts: dict[jax.Device, jax.Array] = {}
    for source in sources:
        index = source.piece.place
        keep = {device: box for device, box in boxes.items() if _holds(box, index)}
        if not keep:
            continue
        inner = {device: box[len(index) :] for device, box in keep.items()}
        hull = [
            (min(start for start, _ in dim), max(stop for _, stop in dim)) for dim in zip(*inner.values(), strict=True)
        ]
        array = _taken(source, hull, folder)
        for device, box in keep.items():
            cut = (slice(start - low, stop - low) for (start, stop), (low, _) in zip(inner[device], hull, strict=True))
            piece = jax.device_put(array[tuple(cut)], device)
            if not index:
                parts[device] = piece.astype(leaf.dtype)
                continue
            if device not in parts:
                parts[device] = jnp.zeros([stop - start for start, stop in box], leaf.dtype, device=device)
            row = [np.int32(i - start) for i, (start, _) in zip(index, box, strict=False)]
            parts[device] = _insert(parts[device], piece, row)
        jax.block_until_ready(list(parts.values()))  # otherwise tensors would queue up in memory
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, [parts[device] for device in boxes])


def _holds(box: list[Range], index: tuple[int, ...]) -> bool:
    """Returns whether a box contains an index of the first dims."""
    return all(start <= i < stop for i, (start, stop) in zip(index, box, strict=False))


def _taken(source: Source, hull: list[Range], folder: Folder) -> np.ndarray:
    """Reads a tensor's part of the parameter: this range of the dims that are not stacked."""
    (entry, index), name, sizes = source
    array = entry.take(functools.partial(_values, folder, name), sizes, dict(zip(entry.dims, hull, strict=True)))
    if entry.divisor is None:
        return array
    number = index[0] if entry.layers is None else entry.layers[index[0]]
    return array.astype(np.float32) / np.float32(entry.divisor(number))


def _values(folder: Folder, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of a tensor; float64, which is not supported, becomes float32."""
    array = folder.read(name, index)
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if tensorfile.count_not_finite(narrow):
        raise CheckpointFolderError(
            f"{folder.tensors[name].path}: tensor {name} has values up to {np.abs(array).max():.3g} in float64, which "
            "float32 can't hold"
        )
    return narrow


@functools.partial(jax.jit, donate_argnums=0)
def _insert(stack: jax.Array, piece: jax.Array, index: list) -> jax.Array:
    piece = jnp.expand_dims(piece.astype(stack.dtype), range(len(index)))
    return jax.lax.dynamic_update_slice(stack, piece, (*index, *[0] * (stack.ndim - len(index))))


def _constant(leaf: jax.ShapeDtypeStruct, value: float) -> jax.Array:
    def part(index):
        return np.full([len(range(*cut.indices(size))) for cut, size in zip(index, leaf.shape, strict=True)], value)

    return jax.make_array_from_callback(leaf.shape, _sharding(leaf), lambda index: part(index).astype(leaf.dtype))


def _sharding(leaf: jax.ShapeDtypeStruct):
    return leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])


def _own_mesh(w: jax.Array | None = None):
    """Sets the mesh of `w`, whatever the current one is; without `w`, no mesh, for programs on one device."""
    mesh = w.sharding.mesh if w is not None and isinstance(w.sharding, NamedSharding) else None
    return jax.set_mesh(mesh if isinstance(mesh, Mesh) else Mesh(np.empty((), object), ()))


def _gathered(w: jax.Array, index: tuple[int, ...], dtype) -> np.ndarray:
    """Returns one index of the stacked dims, gathered to the host."""
    if not w.is_fully_addressable:
        with _own_mesh(w):
            return np.asarray(_gather(w, [np.int32(i) for i in index], dtype))
    # All of it is on this process's devices: join it on the host, so that no device has to hold a whole tensor.
    array = np.empty(w.shape[len(index) :], dtype)
    for shard in w.addressable_shards:
        box = [part.indices(size) for part, size in zip(shard.index, w.shape, strict=True)]
        own = [np.int32(i - start) for i, (start, *_) in zip(index, box, strict=False)]
        if shard.replica_id == 0 and all(0 <= i < size for i, size in zip(own, shard.data.shape, strict=False)):
            with _own_mesh():
                array[shard.index[len(index) :]] = _pick(shard.data, own, dtype)
    return array


@functools.partial(jax.jit, static_argnums=2)
def _pick(w, index, dtype):
    return w[tuple(index)].astype(dtype)


@functools.partial(jax.jit, static_argnums=2)
def _gather(w, index, dtype):
    """Returns one index of the stacked dims, replicated on every device."""

    def pick(bits, index):
        # Indexing with an array: if the dim is split, this compiles to a sum over devices, where the others contribute
        # zeros. A plain index would gather the whole stack.
        for i in index:
            bits = bits.at[i[None]].get(mode="promise_in_bounds")[0]
        return bits

    # Sums integers, so that -0 and NaN keep their bits.
    bits = jax.lax.bitcast_convert_type(w, jnp.dtype(f"uint{8 * w.dtype.itemsize}"))
    bits = jax.sharding.auto_axes(pick, out_sharding=PartitionSpec())(bits, index)
    return jax.lax.bitcast_convert_type(bits, w.dtype).astype(dtype)


def _natural(name: str) -> list:
    """Returns a sort key that puts layers.2 before layers.10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
