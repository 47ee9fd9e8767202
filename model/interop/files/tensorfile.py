"""safetensors files: 8 bytes (the header's length, little-endian), a JSON header, and the tensors, row-major.

The header is {name: {"dtype", "shape", "data_offsets": [start, stop]}}, with offsets counted from its end.

This code replaces the `safetensors` library, because a model may be as large as the memory that holds it. Measured with
safetensors 0.8 on 32 bfloat16 tensors of 32 MiB, read one after another: the library's memory map leaves every page it
touched resident (1.1 GiB at the end). Its `pread` backend, new in 0.8, holds each tensor twice, reads all of it for a
slice, and took 2.5x as long as this reader, which holds the tensor once. For writing, the library needs all tensors of
a file at once. The tests compare both directions with the library.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from model.interop.files import recognize

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_DTYPES = {name: np.dtype(dtype) for name, dtype in _DTYPES.items()}
_BLOCK = 16 * 2**20  # bytes to read at a time if only a part of each row is needed
_LONGEST_HEADER = 100_000_000  # bytes; the library's limit too


class CheckpointFolderError(Exception):
    """A checkpoint folder can't be read or written; the message, one line, says which file and what to do."""


class Tensor(NamedTuple):
    """The location of a tensor, known without reading its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    path: Path
    offset: int  # bytes from the start of the file


@contextlib.contextmanager
def translated(what: str):
    """Converts an OSError in the block to CheckpointFolderError."""
    try:
        yield
    except OSError as error:
        raise CheckpointFolderError(f"{what}: {error.strerror or error}") from error


def read_header(path: Path) -> dict[str, Tensor]:
    """Returns the location of every tensor of a file.

    Raises:
      CheckpointFolderError: the file is truncated or damaged.
    """
    with translated(f"can't read {path}"), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            what = recognize.file(path) or f"is truncated or no safetensors file ({size} bytes); download it again"
            raise CheckpointFolderError(f"{path} {what}")
        text = stream.read(length)
    start, tensors, end = 8 + length, {}, 0
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = entry["data_offsets"]
            dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
            if dtype is None:
                raise CheckpointFolderError(f"{path}: tensor {name} has dtype {entry['dtype']}, which isn't supported")
            if begin != end or stop - begin != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                raise ValueError(name)
            tensors[name] = Tensor(shape, dtype, path, start + begin)
            end = stop
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointFolderError(f"{path} is damaged, its header is wrong ({error}); download it again") from error
    if start + end != size:
        raise CheckpointFolderError(
            f"{path} is truncated or damaged: it has {size} bytes, but its header promises {start + end}; download it "
            "again"
        )
    return tensors


def read(tensor: Tensor, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """Returns a tensor, or the part `index` of it (a slice with start and stop for each dim).

    Memory: the result, and 16 MiB (or one row) more if the part does not consist of whole rows.
    """
    if not tensor.shape:
        return _rows(tensor, 0, 1).reshape(())
    index = tuple(slice(0, size) for size in tensor.shape) if index is None else index
    first, rest = index[0], index[1:]
    if all(part == slice(0, size) for part, size in zip(rest, tensor.shape[1:], strict=True)):
        return _rows(tensor, first.start, first.stop)
    result = np.empty([part.stop - part.start for part in index], tensor.dtype)
    step = max(1, _BLOCK // (math.prod(tensor.shape[1:]) * tensor.dtype.itemsize))
    for start in range(first.start, first.stop, step):
        stop = min(start + step, first.stop)
        result[start - first.start : stop - first.start] = _rows(tensor, start, stop)[:, *rest]
    return result


def _rows(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Returns rows start to stop of a tensor (for a scalar, its value as one row)."""
    row = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    with translated(f"can't read {tensor.path}"):
        data = np.fromfile(tensor.path, np.uint8, (stop - start) * row, offset=tensor.offset + start * row)
    if data.size != (stop - start) * row:
        raise CheckpointFolderError(f"{tensor.path} was truncated while it was read; download it again")
    return data.view(tensor.dtype).reshape(stop - start, *tensor.shape[1:])


def count_not_finite(array: np.ndarray) -> int:
    """Returns how many values are NaN or infinite; 0 for integers."""
    if array.dtype.kind in "iub" or array.dtype.name.startswith("float8"):
        return 0
    # Compares bits, because numpy has no fast isfinite for bfloat16: without the sign bit, these have the largest ones.
    unsigned = np.dtype(f"uint{8 * array.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(unsigned)
    sign = unsigned.type(1 << (8 * array.itemsize - 1))
    bits, step, count = array.reshape(-1).view(unsigned), max(1, _BLOCK // array.itemsize), 0
    for start in range(0, bits.size, step):
        values = bits[start : start + step] & ~sign
        if values.max() >= infinity:
            count += int((values >= infinity).sum())
    return count


def start_file(path: Path, tensors: Mapping) -> dict[str, Tensor]:
    """Creates a file with a header and room for its tensors, given (shape, dtype) by name; returns their locations."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    # Wide dtypes first, so that every tensor is aligned to its dtype, which PyTorch needs.
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize):
        offsets[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    places = {}
    for name, offset in offsets.items():
        shape, dtype = tensors[name]
        places[name] = Tensor(shape, dtype, path, 8 + len(text) + offset)
    return places
