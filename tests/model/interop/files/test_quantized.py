"""Quantized folders are refused with the name of their method, found in config.json or in the tensors."""

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
from tests.model.interop import hub

UP = "model.layers.0.mlp.up_proj"
WEIGHT = f"{UP}.weight"
INT8, INT32, BYTES = np.ones((48, 32), np.int8), np.ones((4, 48), np.int32), np.ones((768, 1), np.uint8)
FP8, SCALE = np.ones((48, 32), ml_dtypes.float8_e4m3fn), np.ones(48, np.float32)

# What each method writes in place of a layer's weight, and its field in config.json.
GPTQ = {f"{UP}.{name}": INT32 for name in ("qweight", "qzeros", "g_idx")} | {f"{UP}.scales": SCALE}
NF4 = {WEIGHT: BYTES, f"{WEIGHT}.absmax": SCALE, f"{WEIGHT}.quant_state.bitsandbytes__nf4": np.ones(8, np.uint8)}
INT8_BNB = {WEIGHT: INT8, f"{UP}.SCB": SCALE, f"{UP}.weight_format": np.array(0, np.uint8)}
PACKED = {f"{UP}.weight_packed": INT32, f"{UP}.weight_scale": SCALE, f"{UP}.weight_shape": np.ones(2, np.int64)}
METHODS = {
    "gptq": (GPTQ, {"quant_method": "gptq", "bits": 4}, "quant_method 'gptq', bits 4"),
    "awq": (GPTQ, {"quant_method": "awq", "bits": 4, "group_size": 128}, "quant_method 'awq'"),
    "bitsandbytes in 4 bits": (
        NF4,
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "'bitsandbytes', load_in_4bit",
    ),
    "bitsandbytes in 8 bits": (INT8_BNB, {"load_in_8bit": True}, r"load_in_8bit True .*\.dequantize\(\)"),
    "fp8": (
        {WEIGHT: FP8, f"{UP}.weight_scale_inv": SCALE},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "quant_method 'fp8'.*FineGrainedFP8Config",
    ),
    "compressed-tensors": (
        PACKED,
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "'compressed-tensors', format 'pack-quantized'.*CompressedTensorsConfig",
    ),
    "int8 of compressed-tensors": (
        {WEIGHT: INT8, f"{UP}.weight_scale": SCALE},
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        "format 'int-quantized'.*int8",
    ),
    "mxfp4": ({f"{UP}_blocks": BYTES, f"{UP}_scales": BYTES}, {"quant_method": "mxfp4"}, "'mxfp4'.*Mxfp4Config"),
    "MLX": ({WEIGHT: INT32, f"{UP}.scales": SCALE, f"{UP}.biases": SCALE}, {"group_size": 64, "bits": 4}, "bits 4"),
    "a method of tomorrow": ({WEIGHT: INT8}, {"quant_method": "qx9"}, "quant_method 'qx9'.*before it was quantized"),
}
# The same tensors without a field in config.json.
SILENT = {
    "gptq": "GPTQ or AWQ",
    "bitsandbytes in 4 bits": r"bitsandbytes, integers of 8 bits",
    "bitsandbytes in 8 bits": r"bitsandbytes, integers of 8 bits",
    "fp8": r"FP8\): 2 tensors such as .*float8_e4m3fn",
    "compressed-tensors": "compressed-tensors",
    "int8 of compressed-tensors": r"\(integers of 8 bits\)",
    "mxfp4": "MXFP4.*Mxfp4Config",
    "MLX": "integers of 32 bits",
    "a method of tomorrow": r"\(integers of 8 bits\): 1 tensors such as .*up_proj.weight \(int8\)",
}


def changed(path, tensors, config=(), **files):
    """Makes the folder of a tiny LLaMA with the weight of one layer in another form."""
    shutil.copytree(hub.reference("llama")[1], path)
    kept = load_file(path / "model.safetensors")
    if tensors:
        del kept[WEIGHT]
    save_file(kept | tensors, path / "model.safetensors")
    given = json.loads((path / "config.json").read_text()) | dict(config)
    (path / "config.json").write_text(json.dumps(given))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return Folder(path)


def read(folder):
    name, config = registry.read_config(folder)
    return registry.read(folder, name, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


def refused(folder, words):
    with pytest.raises(CheckpointFolderError, match=words) as error:
        read(folder)
    message = str(error.value)
    assert "\n" not in message and str(folder.path) in message and "quantized weights" in message
    assert "missing" not in message  # the message names the cause, not its consequences


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_named_as_config_json_gives_it(name, tmp_path):
    tensors, described, words = METHODS[name]
    field = "quantization" if name == "MLX" else "quantization_config"
    refused(changed(tmp_path / "model", tensors, {field: described}), f"{field} of config.json says .*{words}")


@pytest.mark.parametrize("name", SILENT)
def test_tensors_show_it_where_config_json_is_silent(name, tmp_path):
    refused(changed(tmp_path / "model", METHODS[name][0]), SILENT[name])


def test_older_tools_keep_the_method_in_a_file_of_its_own(tmp_path):
    folder = changed(tmp_path / "model", GPTQ, quantize_config={"bits": 4, "group_size": 128})
    refused(folder, "quantize_config.json says bits 4")


def test_a_config_that_says_so_of_plain_weights_is_refused_with_the_way_out(tmp_path):
    folder = changed(tmp_path / "model", {}, {"quantization_config": {"quant_method": "fp8"}})
    refused(folder, "though all tensors are floating-point.*delete quantization_config from config.json")


@pytest.mark.parametrize("value", [None, {}])
def test_no_quantization_is_neutral(value, tmp_path):
    assert read(changed(tmp_path / "model", {}, {"quantization_config": value})).config.num_layers == 3


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.bool_])
def test_integers_never_become_weights(dtype, tmp_path):
    refused(changed(tmp_path / "model", {WEIGHT: np.ones((48, 32), dtype)}), r"up_proj\.weight")
