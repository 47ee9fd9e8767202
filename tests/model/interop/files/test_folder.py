"""Folders and files equal those of the safetensors library, and every kind of damage is named."""

import json
import os
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import save_file

from model.interop.files import tensorfile
from model.interop.files.folder import INDEX, SINGLE, Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.interop.files.writer import Writer

RNG = np.random.default_rng(0)
TENSORS = {
    "half": RNG.standard_normal((7, 5, 3)).astype(np.float16),
    "brain": RNG.standard_normal((3, 4)).astype(ml_dtypes.bfloat16),
    "single": RNG.standard_normal((6, 8)).astype(np.float32),
    "eight": RNG.standard_normal((2, 3)).astype(ml_dtypes.float8_e4m3fn),
    "scalar": np.array(2.5, np.float32),
    "ids": np.arange(5),
    "none": np.zeros((0, 3), np.float32),
}


def write(path, tensors, size=10**9):
    with Writer(path, {name: (t.shape, t.dtype) for name, t in tensors.items()}, {"config.json": "{}"}, size) as writer:
        for name in reversed(tensors):
            writer.write(name, tensors[name])
    return path


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert found[name].tobytes() == tensor.tobytes()


def library(path):
    """Returns what the library finds in a folder; through PyTorch, because it has no 8-bit floats for numpy."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as stream:
            assert stream.metadata() == {"format": "pt"}
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    bits = {name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for name, tensor in found.items()}
    dtypes = {name: getattr(ml_dtypes, str(t.dtype)[6:], None) or str(t.dtype)[6:] for name, t in found.items()}
    return {name: bits[name].view(dtypes[name]).reshape(tensor.shape) for name, tensor in found.items()}


def test_reads_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    folder = Folder(tmp_path)
    assert {name: (t.shape, t.dtype) for name, t in folder.tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in TENSORS.items()
    }
    assert_same({name: folder.read(name) for name in folder.tensors}, TENSORS)


@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_reads_parts(tmp_path, block, monkeypatch):
    monkeypatch.setattr(tensorfile, "_BLOCK", block)
    save_file(TENSORS, tmp_path / SINGLE)
    for index in (np.s_[2:5, 0:5, 0:3], np.s_[1:6, 1:3, 0:3], np.s_[0:7, 0:5, 2:3], np.s_[3:3, 0:5, 0:3]):
        np.testing.assert_array_equal(Folder(tmp_path).read("half", index), TENSORS["half"][index])


@pytest.mark.parametrize("size", [1, 60, 10**9])
def test_the_library_reads_what_is_written(tmp_path, size):
    path = write(tmp_path / "out", TENSORS, size)
    assert_same(library(path), TENSORS)
    assert_same({name: Folder(path).read(name) for name in TENSORS}, TENSORS)
    files = sorted(file.name for file in path.iterdir())
    if size == 10**9:
        assert files == ["config.json", SINGLE]
    else:
        shards = [name for name in files if name.startswith("model-")]
        assert files == ["config.json", *shards, INDEX] and len(shards) == (7 if size == 1 else 4)
        assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
        index = json.loads((path / INDEX).read_text())
        assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in TENSORS.values())}
        assert index["weight_map"].keys() == TENSORS.keys()


def test_a_killed_export_leaves_nothing_that_looks_complete(tmp_path):
    program = f"""
        import os
        import numpy as np
        from model.interop.files.writer import Writer
        with Writer({str(tmp_path / "out")!r}, {{"a": ((3,), np.dtype("float32"))}}, {{}}) as writer:
            writer.write("a", np.ones(3, np.float32))
            os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)]).returncode == 9
    assert [file.name for file in tmp_path.iterdir()] == ["out.partial"]
    write(tmp_path / "out", TENSORS)  # the partial folder of a killed write does not block the next one
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "out", {"a": ((3,), np.dtype("float32"))}, {}):
        raise KeyboardInterrupt
    writer = Writer(tmp_path / "out", {"a": ((3,), np.dtype("float32"))}, {})
    with pytest.raises(ValueError, match=r"1 tensors were announced but not written, e\.g\. a"), writer:
        pass
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(CheckpointFolderError, match="is not empty; choose another folder"):
        write(tmp_path, TENSORS)
    with pytest.raises(CheckpointFolderError, match=r"can't write .*mine/out"):
        write(tmp_path / "mine" / "out", TENSORS)


def refused(path, match):
    with pytest.raises(CheckpointFolderError, match=match) as error:
        folder = Folder(path)
        for name in folder.tensors:
            folder.read(name)
    assert "\n" not in str(error.value)


def test_no_folder_no_checkpoint_only_pickles(tmp_path):
    refused(tmp_path / "absent", "there is no folder .*absent")
    refused(tmp_path, f"holds no checkpoint: neither {SINGLE} nor {INDEX}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refused(tmp_path, r"only pickle files \(pytorch_model.bin\): unpickling runs .* convert them to safetensors")
    save_file(TENSORS, tmp_path / SINGLE)
    assert Folder(tmp_path).tensors


def test_config(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    folder = Folder(tmp_path)
    with pytest.raises(CheckpointFolderError, match=r"there is no config.json in"):
        folder.config()
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointFolderError, match=r"config.json can't be read"):
        folder.config()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert folder.config() == {"model_type": "llama"}


def test_index_that_is_wrong(tmp_path):
    path = write(tmp_path / "out", TENSORS, 60)
    index = json.loads((path / INDEX).read_text())
    good = json.dumps(index)
    for changes, message in (
        ({"half": "../secret.safetensors"}, "not a file beside it"),
        ({"half": "model-9.safetensors"}, "names model-9.safetensors, which is missing"),
        ({"other": index["weight_map"]["half"]}, "says that .* holds other, but it does not"),
        ({"half": index["weight_map"]["ids"]}, "says that .* holds half, but it does not"),
    ):
        (path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | changes}))
        refused(path, message)
    for text in ("[]", "{}", '{"weight_map": {"a": 1}}'):
        (path / INDEX).write_text(text)
        refused(path, f"{INDEX} is damaged")
    (path / INDEX).write_text(good)
    (path / index["weight_map"]["half"]).unlink()
    refused(path, r"names model-00001-of-00004.safetensors, which is missing")


def test_truncated_and_damaged_files(tmp_path):
    file = tmp_path / SINGLE
    save_file(TENSORS, file)
    good = file.read_bytes()
    for length in (0, 7, 8, 100, len(good) - 1):
        file.write_bytes(good[:length])
        refused(tmp_path, f"{SINGLE} is truncated")
    file.write_bytes(good + b"x")
    refused(tmp_path, "truncated or damaged")
    file.write_bytes(b"\xff" * 100)
    refused(tmp_path, "truncated or no safetensors file")
    for header in (
        b"nonsense",
        b"[]",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": 1}',
    ):
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        refused(tmp_path, f"{SINGLE} is damaged, its header is wrong")
    header = b'{"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(tmp_path, "tensor a has dtype F4, which isn't supported")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    folder = Folder(tmp_path)
    os.truncate(tmp_path / SINGLE, 800)
    with pytest.raises(CheckpointFolderError, match="was truncated while it was read"):
        [folder.read(name) for name in folder.tensors]
    (tmp_path / SINGLE).unlink()
    with pytest.raises(CheckpointFolderError, match=f"can't read .*{SINGLE}: No such file"):
        folder.read("half")
