"""The tensors of a folder decide the precision of its model; config.json does not."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from model import architectures
from model.interop import registry
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.weights import by_name
from tests.model.interop import hub

BF16 = ml_dtypes.bfloat16
NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


def converted(path, dtype, said, **others):
    """Makes the folder of a tiny LLaMA in `dtype`, with some tensors in others; config.json claims `said`."""
    shutil.copytree(hub.reference("llama")[1], path)
    given = json.loads((path / "config.json").read_text()) | {"torch_dtype": said, "dtype": said}
    (path / "config.json").write_text(json.dumps(given))
    tensors = load_file(path / "model.safetensors")
    tensors = {name: tensor.astype(others.get(name, dtype)) for name, tensor in tensors.items()}
    save_file(tensors, path / "model.safetensors")
    return Folder(path), tensors


def read(folder):
    """Returns (description of the precision, config, model)."""
    name, config = registry.read_config(folder)
    model = registry.read(folder, name, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))
    return registry.described_precision(folder, name, config), config, model


@pytest.mark.parametrize(
    ("dtype", "others", "held", "words"),
    [
        (np.float32, {}, "float32", "float32"),
        (BF16, {}, "bfloat16", "bfloat16"),
        (np.float16, {}, "float32", "float32, which holds the file's float16 exactly"),
        (BF16, {NORM: np.float32}, "float32", "float32, which holds the file's bfloat16 and float32 exactly"),
        (np.float32, {UP: BF16}, "float32", "float32, which holds the file's bfloat16 and float32 exactly"),
        (BF16, {UP: np.float16}, "float32", "float32, which holds the file's bfloat16 and float16 exactly"),
        (np.float64, {}, "float32", "float32, rounded from float64"),
    ],
)
@pytest.mark.parametrize("said", ["bfloat16", "float32", "float16"])
def test_no_value_is_rounded(dtype, others, held, words, said, tmp_path):
    folder, tensors = converted(tmp_path / "model", dtype, said, **others)
    found, config, model = read(folder)
    assert (found, config.param_dtype, config.dtype) == (words, held, held)
    leaves = by_name(model)
    assert {leaf.dtype.name for leaf in leaves.values()} == {held}
    np.testing.assert_array_equal(leaves["norm/scale"], tensors[NORM].astype(np.float32))
    up = leaves["stack/segments/0/0/feed_forward/up"][0]
    np.testing.assert_array_equal(up, tensors[UP].T.astype(np.float32))


def test_a_buffer_that_is_not_read_does_not_count(tmp_path):
    folder, tensors = converted(tmp_path / "model", BF16, "bfloat16")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file(tensors | buffer, folder.path / "model.safetensors")
    assert read(Folder(folder.path))[1].param_dtype == "bfloat16"


def test_a_correction_of_experts_is_float32_in_any_model(tmp_path):
    """DeepSeek-V3's files store it in float32 among bfloat16 weights, and so does our model."""
    path = tmp_path / "model"
    shutil.copytree(hub.reference("deepseek3")[1], path)
    tensors = {
        name: tensor.astype(np.float32 if name.endswith("e_score_correction_bias") else BF16)
        for name, tensor in load_file(path / "model.safetensors").items()
    }
    save_file(tensors, path / "model.safetensors")
    words, config, model = read(Folder(path))
    assert words == config.param_dtype == "bfloat16"
    kinds = {name.endswith("/correction"): leaf.dtype.name for name, leaf in by_name(model).items()}
    assert kinds == {True: "float32", False: "bfloat16"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16])
def test_values_that_are_not_finite_are_refused(dtype, value, tmp_path):
    folder, tensors = converted(tmp_path / "model", dtype, "float32")
    tensors[UP][3, 5] = value
    save_file(tensors, folder.path / "model.safetensors")
    words = rf"{folder.path}/model.safetensors: tensor {UP} has 1 values of 1536 that are NaN or infinite"
    with pytest.raises(CheckpointFolderError, match=words) as error:
        read(Folder(folder.path))
    assert "\n" not in str(error.value)


def test_float64_beyond_float32_is_refused(tmp_path):
    folder, tensors = converted(tmp_path / "model", np.float64, "float64")
    tensors[UP][3, 5] = -1e300
    save_file(tensors, folder.path / "model.safetensors")
    with pytest.raises(CheckpointFolderError, match=rf"{UP} has values up to 1e\+300 in float64, which float32 can't"):
        read(Folder(folder.path))
