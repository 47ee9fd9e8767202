"""Refuses quantized weights, as declared by config.json or seen in the tensors.

Weights of 8 or fewer bits mean nothing without their scales, and every method has its own layout of both. This one
check names the method and a remedy, instead of listing missing tensors.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError

_FLOATS = frozenset(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))

# Fields of config.json: transformers', old compressed-tensors', and MLX's.
_FIELDS = ("quantization_config", "compression_config", "quantization")
# Files of older tools: AutoGPTQ, AutoAWQ, NVIDIA's ModelOpt.
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# Entries of such a field that messages show.
_SHOWN = ("quant_method", "quant_algo", "format", "fmt", "bits", "w_bit", "load_in_4bit", "load_in_8bit")
# Tensors that accompany quantized weights -> the method that writes them; the first match counts.
_BESIDE = (
    (r".*\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)", "bitsandbytes"),
    (r".*\.(SCB|weight_format)", "bitsandbytes"),
    (r".*\.(qweight|qzeros|g_idx)", "GPTQ or AWQ"),
    (r".*\.weight_(packed|shape|zero_point|g_idx)", "compressed-tensors"),
    (r".*_(blocks|scales)", "MXFP4"),
    (r".*\.weight_scale_inv", "FP8"),
    (r".*\.(weight_scale|weight_scale_2|input_scale|activation_scale|scales|biases)", ""),
)
_LOADED = "transformers' from_pretrained(FOLDER{}), then save_pretrained(NEW)"
_WAYS = {
    "bitsandbytes": "transformers' from_pretrained(FOLDER).dequantize(), then save_pretrained(NEW)",
    "fp8": _LOADED.format(", quantization_config=FineGrainedFP8Config(dequantize=True)")
    + "; for DeepSeek use its inference/fp8_cast_bf16.py",
    "mxfp4": _LOADED.format(", quantization_config=Mxfp4Config(dequantize=True)"),
    "compressed-tensors": _LOADED.format(", quantization_config=CompressedTensorsConfig(dequantize=True)"),
}


def refuse_config(folder: Folder, config: dict) -> None:
    """Refuses weights that config.json declares quantized.

    Raises:
      CheckpointFolderError: it does; names the method and how to dequantize.
    """
    field = next((field for field in _FIELDS if config.get(field)), None)
    if field is None:
        return
    odd = [name for name, tensor in folder.tensors.items() if tensor.dtype not in _FLOATS]
    method, details = _described(config[field])
    said = f"{folder.path} holds quantized weights: {field} of config.json says {details}"
    if not odd:
        raise CheckpointFolderError(
            f"{said}, though all tensors are floating-point numbers; if they were dequantized, delete {field} from "
            "config.json, else use the folder of the model from before it was quantized"
        )
    raise CheckpointFolderError(f"{said} ({_examples(folder, odd)}); {_way(method)}")


def refuse_tensors(folder: Folder, weights: Iterable[str], others: Iterable[str]) -> None:
    """Refuses quantized tensors that config.json does not declare.

    Args:
      weights: names in the folder of the model's own tensors, which must be floating-point numbers.
      others: names of tensors that no part of the model uses.

    Raises:
      CheckpointFolderError: some are quantized; names them, the method, and how to dequantize.
    """
    narrow = [name for name in weights if folder.tensors[name].dtype not in _FLOATS]
    beside = {name: method for name in others for pattern, method in _BESIDE if re.fullmatch(pattern, name)}
    if not narrow and not beside:
        return
    named = next((details for file in _FILES if (details := _file(folder.path / file))), "")
    method = next((method for _, method in _BESIDE if method in beside.values()), "")
    kinds = sorted({_kind(folder.tensors[name].dtype) for name in narrow})
    what = ", ".join(dict.fromkeys(filter(None, [named or method, *kinds]))) or "they have scales"
    raise CheckpointFolderError(
        f"{folder.path} holds quantized weights ({what}): {_examples(folder, [*narrow, *beside])}; {_way(what)}"
    )


def _described(value) -> tuple[str, str]:
    """Returns (method, description) of a field about quantization."""
    if not isinstance(value, dict):
        return "", repr(value)
    value = value | (value["quantization"] if isinstance(value.get("quantization"), dict) else {})
    shown = {name: value[name] for name in _SHOWN if value.get(name)} or value
    method = str(value.get("quant_method", ""))
    if not method and any(name in shown for name in ("load_in_4bit", "load_in_8bit")):
        method = "bitsandbytes"
    return method, ", ".join(f"{name} {given!r}" for name, given in shown.items())


def _file(path: Path) -> str:
    """Describes one of _FILES; '' if it is absent or can't be read, because the tensors are evidence enough."""
    try:
        return f"{path.name} says {_described(json.loads(path.read_text(encoding='utf-8')))[1]}"
    except (OSError, ValueError):
        return ""


def _kind(dtype: np.dtype) -> str:
    if dtype.kind in "iu":
        return f"integers of {8 * dtype.itemsize} bits"
    return "FP8" if dtype.name.startswith("float8") else dtype.name


def _examples(folder: Folder, names: Sequence[str]) -> str:
    dtypes = {name: folder.tensors[name].dtype for name in names[:2]}
    shown = [name if dtype in _FLOATS else f"{name} ({dtype})" for name, dtype in dtypes.items()]
    return f"{len(names)} tensors such as {' and '.join(shown)}"


def _way(method: str) -> str:
    found = next((way for name, way in _WAYS.items() if name in method.lower()), None)
    if found is None:
        return "use the folder of the model from before it was quantized, or dequantize them to bfloat16 first"
    return f"dequantize them to bfloat16 first ({found}), or use the folder from before they were quantized"
