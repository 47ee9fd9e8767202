"""Writes a checkpoint folder, in the layout that folder.py reads, tensor by tensor."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model.interop.files import tensorfile
from model.interop.files.folder import INDEX, SINGLE
from model.interop.files.tensorfile import CheckpointFolderError, Tensor


def check_new(path: str | os.PathLike) -> None:
    """Refuses a path that Writer would have to overwrite.

    Raises:
      CheckpointFolderError: something exists there.
    """
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointFolderError(f"{path} exists and is not empty; choose another folder or remove it")


class Writer:
    """Writes a checkpoint folder tensor by tensor, in any order, and renames it to its final name when it is complete.

    Until then its name is NAME.partial, so a killed export leaves nothing that looks complete. It holds no tensors.

        with Writer(path, {"lm_head.weight": ((32, 8), np.dtype("float32"))}, {"config.json": "{}"}) as writer:
            writer.write("lm_head.weight", array)

    Args:
      path: a folder that does not exist or is empty.
      tensors: (shape, dtype) of every tensor that will be written; files contain them in this order.
      files: contents of additional text files, by name.
      max_shard_bytes: maximum bytes of tensors per file; a larger tensor gets a separate file.
      prefix: the prefix of the files with tensors.

    Raises:
      CheckpointFolderError: the folder is not empty, or can't be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        files: Mapping[str, str],
        max_shard_bytes: float = 5 * 10**9,
        prefix: str = "",
    ):
        self.path = Path(path).absolute()
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._waiting = dict(tensors)
        self._shards = _shards(tensors, max_shard_bytes)
        self._files, self._prefix = files, prefix
        self._places: dict[str, Tensor] = {}

    def __enter__(self) -> "Writer":
        check_new(self.path)
        with self._writing():
            if self._partial.exists():  # left by a killed export
                shutil.rmtree(self._partial)
            self._partial.mkdir(parents=True)
            count = len(self._shards)
            weight_map: dict[str, str] = {}
            for number, shard in enumerate(self._shards, start=1):
                file = self._prefix + (SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors")
                self._places |= tensorfile.start_file(self._partial / file, shard)
                weight_map |= dict.fromkeys(shard, file)
            if count > 1:
                sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self._waiting.values()]
                index = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(weight_map.items()))}
                (self._partial / (self._prefix + INDEX)).write_text(json_text(index), encoding="utf-8")
            for name, text in self._files.items():
                (self._partial / name).write_text(text, encoding="utf-8")
        return self

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one of the announced tensors; `array` has the announced shape and dtype."""
        place = self._places[name]
        if (array.shape, array.dtype) != (place.shape, place.dtype):
            raise ValueError(f"{name} is {array.dtype}{array.shape}, announced as {place.dtype}{place.shape}")
        with self._writing(), place.path.open("r+b") as stream:
            stream.seek(place.offset)
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        del self._waiting[name]

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} tensors were announced but not written, e.g. {min(self._waiting)}")
        with self._writing():
            for file in [*self._partial.iterdir(), self._partial]:
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            self._partial.rename(self.path)

    def _writing(self):
        return tensorfile.translated(f"can't write {self.path}")


def json_text(value) -> str:
    """Returns JSON text in the format of Hugging Face's config.json and index."""
    return json.dumps(value, indent=2) + "\n"


def _shards(tensors: Mapping, max_bytes: float) -> list[dict]:
    """Splits tensors, in their order, into files that are as full as possible."""
    shards: list[dict] = [{}]
    size = 0
    for name, (shape, dtype) in tensors.items():
        own = math.prod(shape) * dtype.itemsize
        if shards[-1] and size + own > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = (shape, dtype)
        size += own
    return shards
