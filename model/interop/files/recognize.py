"""Explains what a file or folder without readable weights is, and what to do about it.

People give a wrong folder, or one that was only partly downloaded. A message like "no model.safetensors" is then true
but does not help. This file looks at names and at the first bytes of files; it reads no weights.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# First bytes of files that are often found under a wrong name.
_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, and the file itself was not downloaded; run: git lfs pull",
    ),
    (b"GGUF", "is a GGUF file, which llama.cpp reads; use the safetensors files that it was made from"),
    (
        b"PK\x03\x04",
        "is a PyTorch pickle under another name; convert it to safetensors with transformers (save_pretrained)",
    ),
    (b"\x80\x02", "is a pickle under another name; convert it to safetensors with transformers (save_pretrained)"),
    (b"\x89HDF", "is an HDF5 file (TensorFlow); convert it to safetensors with transformers 4 (from_tf=True)"),
    (b"<!doctype html", "is a web page, not the file; download it again"),
    (b"<html", "is a web page, not the file; download it again"),
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "pytorch_model.bin.index.json")
# Weights of other libraries, and how to convert them to safetensors.
_OTHERS = (
    (
        ("*.h5", "saved_model.pb", "*.ckpt.index", "*.ckpt.data-*"),
        "TensorFlow",
        "transformers 4: from_tf=True, then save_pretrained",
    ),
    (("*.msgpack",), "Flax", "transformers 4: from_flax=True, then save_pretrained"),
    (("*.onnx",), "ONNX", "it holds a program; use the folder that it was exported from"),
    (("*.ot",), "rust-bert", "use the folder that it was made from"),
)


def file(path: Path) -> str | None:
    """Returns what a file is by its first bytes ('is a Git LFS pointer, ...'); None if they tell nothing.

    Raises:
      OSError: the file can't be read.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
    found = (what for beginning, what in _BEGINNINGS if start.lstrip().lower().startswith(beginning.lower()))
    return next(found, None)


def folder(path: Path, prefix: str = "") -> str:
    """Returns what a folder with neither PREFIXmodel.safetensors nor its index is, and what to do.

    Args:
      prefix: the prefix of the files with tensors ('adapter_' for an adapter).
    """
    if not path.exists():
        return f"there is no folder {path} (a model of the hub must be downloaded first)"
    if not path.is_dir():
        what = file(path) or "is a file"
        return f"{path} {what}; give a folder with {prefix}{SINGLE} and its configuration"
    names = functools.partial(_named, path)
    if prefix and names(SINGLE, INDEX):
        return f"{path} holds a whole model and no adapter (no {prefix}{SINGLE}); read it with --from_hf"
    if not prefix and names("adapter_config.json", "adapter_model.*"):
        return (
            f"{path} holds an adapter of peft and no model; read its base model (base_model_name_or_path in "
            "adapter_config.json) with --from_hf, and then this folder with --from_peft and --base"
        )
    return _weights(path, names, prefix) or _places(path, names) or _nothing(path, names, prefix)


def _weights(path: Path, names: Callable[..., str], prefix: str) -> str | None:
    """Describes a folder with weights in another format."""
    if found := names("consolidated*.safetensors"):
        return (
            f"{path} holds weights in Mistral's own format ({found}), whose tensors have other names; use the same "
            f"model's files for transformers ({SINGLE} or {INDEX}, with config.json)"
        )
    if found := names("consolidated*.pth"):
        return (
            f"{path} holds weights in Meta's own format ({found}), which are pickles: unpickling runs whatever code is "
            "in them; use the same model's files for transformers"
        )
    if found := names(f"{prefix}model-*-of-*.safetensors"):
        return f"{path} holds {found}, but not {prefix}{INDEX}, which says what is in which file; download that too"
    if found := names("*.safetensors"):
        return f"{path} holds {found}, and no {prefix}{SINGLE}; if that file is the whole model, rename it to that"
    if found := names("*.gguf"):
        return (
            f"{path} holds GGUF ({found}), which llama.cpp reads; use the folder with safetensors that it was made from"
        )
    # Check these before pickles: weights of any kind may come with a training_args.bin.
    for patterns, library, way in _OTHERS:
        if found := names(*patterns):
            return f"{path} holds only weights of {library} ({found}); convert them to safetensors first ({way})"
    if found := names(*_PICKLES):
        return (
            f"{path} holds only pickle files ({found}): unpickling runs whatever code is in them; convert them to "
            "safetensors first (transformers: load, then save_pretrained)"
        )
    return None


def _places(path: Path, names: Callable[..., str]) -> str | None:
    """Describes a folder that contains the model in a subfolder."""
    if (path / "checkpoints").is_dir():
        return f"{path} is a workdir of this code and no checkpoint folder; give it as --workdir or config.init_from"
    if found := sorted({file.parent for name in (SINGLE, INDEX) for file in path.glob(f"*/{name}")}):
        return f"{path} holds no checkpoint itself, but {found[0]} does; give that folder"
    if cached := names("snapshots"):
        inside = sorted((path / "snapshots").iterdir())
        return f"{path} is an entry of the hub's cache; give the folder {inside[0] if inside else cached}"
    return None


def _nothing(path: Path, names: Callable[..., str], prefix: str) -> str:
    others = names("*.json", "*.model", "*.txt", "*.jinja")
    if others:
        found = f", only {others}: the weights were not downloaded"
    else:
        found = "" if any(path.iterdir()) else "; the folder is empty"
    return f"{path} holds no checkpoint: neither {prefix}{SINGLE} nor {prefix}{INDEX}{found}"


def _named(path: Path, *patterns: str) -> str:
    """Returns names in a folder that match a pattern, as text for a message; '' if none does."""
    return some(sorted({found.name for pattern in patterns for found in path.glob(pattern)}))


def some(names: Iterable, most: int = 3) -> str:
    """Returns the first few of these names as text; '' for none."""
    names = list(map(str, names))
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
