"""Reads a checkpoint folder in Hugging Face's layout: `config.json`, and tensors by name in safetensors files.

    config.json                       the architecture, in their terms
    model.safetensors                 all tensors, or
    model-00001-of-00003.safetensors  a shard of them, and
    model.safetensors.index.json      the shard of each tensor

Pickle files (`pytorch_model.bin`) are refused, because unpickling runs code. Nothing here imports JAX.
"""

import json
import os
from pathlib import Path

import numpy as np

from model.interop.files import recognize, tensorfile
from model.interop.files.recognize import INDEX, SINGLE
from model.interop.files.tensorfile import CheckpointFolderError, Tensor


class Folder:
    """A checkpoint folder to read from; `tensors` lists its content.

    Args:
      prefix: the prefix of the files with tensors ('adapter_' for an adapter).

    Raises:
      CheckpointFolderError: there is no folder or no checkpoint in it, it has only pickle files, or a file is missing,
        truncated or damaged.
    """

    def __init__(self, path: str | os.PathLike, prefix: str = ""):
        self.path = Path(path)
        self._prefix, self._single, self._index = prefix, prefix + SINGLE, prefix + INDEX
        self.tensors: dict[str, Tensor] = {}
        for file in self._files():
            for name, tensor in tensorfile.read_header(file).items():
                if name in self.tensors:
                    raise CheckpointFolderError(f"{file} and {self.tensors[name].path.name} both hold tensor {name}")
                self.tensors[name] = tensor
        for name, part in self._weight_map().items():
            if name not in self.tensors or self.tensors[name].path.name != part:
                raise CheckpointFolderError(f"{self.path / self._index} says that {part} holds {name}, but it does not")

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Returns a tensor, or the part `index` of it (a slice with start and stop for each dim).

        Memory: the result, and about 16 MiB (or one row) more.

        Raises:
          CheckpointFolderError: the file can't be read, or a value in the part is NaN or infinite. No trained weight
            is, and a model with one computes only NaN.
        """
        tensor = self.tensors[name]
        array = tensorfile.read(tensor, index)
        if bad := tensorfile.count_not_finite(array):
            raise CheckpointFolderError(
                f"{tensor.path}: tensor {name} has {bad} values of {array.size} that are NaN or infinite; download the "
                "file again, or use another checkpoint of the model if it was published like this"
            )
        return array

    def config(self, name: str = "config.json") -> dict:
        """Returns the content of config.json, or of another JSON file in the folder."""
        return _json(self.path / name, f"there is no {name} in {self.path}")

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            raise CheckpointFolderError(recognize.folder(self.path, self._prefix))
        shards = sorted(set(self._weight_map().values()))
        for shard in shards:
            if Path(shard).name != shard:
                raise CheckpointFolderError(f"{self.path / self._index} names {shard!r}, which is not a file beside it")
        if missing := [shard for shard in shards if not (self.path / shard).is_file()]:
            are = "is" if len(missing) == 1 else "are"
            raise CheckpointFolderError(
                f"{self.path / self._index} names {recognize.some(sorted(missing))}, which {are} missing "
                f"({len(missing)} of {len(shards)} files); download what is missing"
            )
        if shards or (self.path / self._single).is_file():
            return [self.path / name for name in shards or [self._single]]
        raise CheckpointFolderError(recognize.folder(self.path, self._prefix))

    def _weight_map(self) -> dict[str, str]:
        """Returns tensor -> file from the index; {} if one file holds everything (which wins if both exist)."""
        path = self.path / self._index
        if (self.path / self._single).is_file() or not path.is_file():
            return {}
        files = _json(path, f"there is no {path}").get("weight_map")
        if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
            raise CheckpointFolderError(f"{path} is damaged: it has no weight_map from tensors to files")
        return files


def _json(path: Path, absent: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointFolderError(absent) from None
    except OSError as error:
        raise CheckpointFolderError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        what = recognize.file(path) or f"can't be read: {error}"
        raise CheckpointFolderError(f"{path} {what}") from error
    if not isinstance(value, dict):
        raise CheckpointFolderError(f"{path} is damaged: it is not a JSON object")
    return value
