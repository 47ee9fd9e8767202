"""Folders without readable weights: one line explains what each is and what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.interop.files.folder import INDEX, SINGLE, Folder
from model.interop.files.tensorfile import CheckpointFolderError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 2200119864\n"
CONFIG = {"config.json": '{"model_type": "llama"}'}


def folder(path, files):
    path.mkdir()
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


FOLDERS = {
    "empty": ({}, "neither model.safetensors nor .*; the folder is empty"),
    "no weights": (
        CONFIG | {"tokenizer.json": "{}"},
        "only config.json, tokenizer.json: the weights were not downloaded",
    ),
    "a pointer": (CONFIG | {SINGLE: POINTER}, f"{SINGLE} is a Git LFS pointer, .* not downloaded; run: git lfs pull"),
    "a web page": (CONFIG | {SINGLE: "<!DOCTYPE html><html>" + "x" * 99}, f"{SINGLE} is a web page"),
    "GGUF": (
        CONFIG | {"llama.Q4_K_M.gguf": b"GGUF\x03"},
        r"holds GGUF \(llama.Q4_K_M.gguf\), .*llama.cpp.*safetensors",
    ),
    "GGUF by another name": (CONFIG | {SINGLE: b"GGUF\x03" + bytes(99)}, f"{SINGLE} is a GGUF file"),
    "a pickle by another name": (CONFIG | {SINGLE: b"PK\x03\x04" + bytes(99)}, f"{SINGLE} is a PyTorch pickle"),
    "an adapter": (
        {"adapter_config.json": "{}", "adapter_model.safetensors": b"x"},
        "an adapter of peft and no model; .*--from_hf.*--from_peft and --base",
    ),
    "Mistral's format": (
        {"consolidated.safetensors": b"x", "params.json": "{}"},
        r"Mistral's own format \(consolidated.safetensors\).*use the same model's files for transformers",
    ),
    "Meta's format": ({"consolidated.00.pth": b"x", "params.json": "{}"}, r"Meta's own format \(consolidated.00.pth\)"),
    "a pickle": (
        CONFIG | {"pytorch_model.bin": b"x"},
        r"only pickle files \(pytorch_model.bin\): .*convert them to saf",
    ),
    "shards of pickles": (
        {f"pytorch_model-0000{i}-of-00004.bin": b"x" for i in (1, 2, 3, 4)} | {"pytorch_model.bin.index.json": "{}"},
        r"only pickle files \(pytorch_model-00001-of-00004.bin, .*, \.\.\.\)",
    ),
    "an index of pickles alone": ({"pytorch_model.bin.index.json": "{}"}, "only pickle files"),
    "TensorFlow": (CONFIG | {"tf_model.h5": b"x"}, r"only weights of TensorFlow \(tf_model.h5\); convert .*from_tf"),
    "Flax": (
        CONFIG | {"flax_model.msgpack": b"x"},
        r"only weights of Flax \(flax_model.msgpack\); convert .*from_flax",
    ),
    "shards without an index": (
        {"model-00001-of-00002.safetensors": b"x", "model-00002-of-00002.safetensors": b"x"},
        f"but not {INDEX}, which says what is in which file; download that too",
    ),
    "another name": (
        CONFIG | {"weights.safetensors": b"x"},
        "holds weights.safetensors, and no model.safetensors; .*rename",
    ),
    "a workdir": (
        CONFIG | {"checkpoints/0/x": b"x"},
        "is a workdir of this code and no checkpoint folder; .*--workdir",
    ),
    "a folder too far out": (
        {f"llama/{SINGLE}": b"x"},
        "holds no checkpoint itself, but .*/llama does; give that folder",
    ),
    "the hub's cache": (
        {"refs/main": "ab", "snapshots/ab/config.json": "{}"},
        "is an entry of the hub's cache; give the folder .*snapshots/ab",
    ),
    "two shards missing": (
        {INDEX: json.dumps({"weight_map": {"a": "m1.safetensors", "b": "m2.safetensors"}})},
        r"names m1.safetensors, m2.safetensors, which are missing \(2 of 2 files\); download",
    ),
    "a pointer for the index": ({INDEX: POINTER}, f"{INDEX} is a Git LFS pointer"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_no_checkpoint_is_called_what_it_is(name, tmp_path):
    files, words = FOLDERS[name]
    path = folder(tmp_path / "given", files)
    with pytest.raises(CheckpointFolderError, match=words) as error:
        Folder(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_model_or_a_file_where_something_else_is_wanted(tmp_path):
    path = folder(tmp_path / "given", CONFIG | {"llama.gguf": b"GGUF\x03"})
    save_file({"a": np.ones(3)}, path / SINGLE)
    with pytest.raises(CheckpointFolderError, match=r"holds a whole model and no adapter .*--from_hf"):
        Folder(path, "adapter_")
    with pytest.raises(CheckpointFolderError, match=r"model.safetensors is a file; give a folder"):
        Folder(path / SINGLE)
    with pytest.raises(CheckpointFolderError, match=r"llama.gguf is a GGUF file.*give a folder"):
        Folder(path / "llama.gguf")
    with pytest.raises(CheckpointFolderError, match=r"there is no folder org/name .*must be downloaded first"):
        Folder("org/name")


def test_weights_beside_other_forms_of_them_are_read(tmp_path):
    """Repositories contain the same model in several formats."""
    others = ("pytorch_model.bin", "tf_model.h5", "consolidated.safetensors", "llama.gguf")
    path = folder(tmp_path / "given", dict.fromkeys(others, b"x"))
    save_file({"a": np.ones(3)}, path / SINGLE)
    assert [*Folder(path).tensors] == ["a"]


def test_a_pointer_in_place_of_the_configuration(tmp_path):
    path = folder(tmp_path / "given", {"config.json": POINTER})
    save_file({"a": np.ones(3)}, path / SINGLE)
    with pytest.raises(CheckpointFolderError, match=r"config.json is a Git LFS pointer, .*run: git lfs pull"):
        Folder(path).config()
