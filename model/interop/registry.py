"""The families that can be read and written, and both directions for a whole checkpoint folder."""

import contextlib
import dataclasses

from model.config import ModelConfig
from model.interop import (
    architectures,
    bert,
    bloom,
    classes,
    deepseek,
    gemma,
    gpt2,
    llama,
    load,
    mixture,
    opt,
    precision,
    quantized,
    t5,
)
from model.interop.classes import with_classes
from model.interop.family import Family, rope_of_transformers_4
from model.interop.folder import Folder
from model.interop.tensorfile import CheckpointFolderError
from model.interop.writer import json_text

FAMILIES: dict[str, Family] = {
    "albert": bert.ALBERT,
    "bert": bert.BERT,
    "roberta": bert.ROBERTA,
    "gpt2": with_classes(gpt2.GPT2, "GPT2", token="classifier"),
    "llama": with_classes(llama.LLAMA, "Llama"),
    "mistral": with_classes(llama.MISTRAL, "Mistral"),
    "opt": with_classes(opt.OPT, "OPT", token=None),
    "bloom": with_classes(bloom.BLOOM, "Bloom", token="classifier"),
    "qwen2": with_classes(llama.QWEN2, "Qwen2"),
    "qwen3": with_classes(llama.QWEN3, "Qwen3"),
    "mixtral": with_classes(mixture.MIXTRAL, "Mixtral"),
    "qwen2_moe": with_classes(mixture.QWEN2, "Qwen2Moe"),
    "qwen3_moe": with_classes(mixture.QWEN3, "Qwen3Moe"),
    "gemma": with_classes(gemma.GEMMA, "Gemma"),
    "gemma2": with_classes(gemma.GEMMA2, "Gemma2"),
    "gemma3_text": with_classes(gemma.GEMMA3, "Gemma3Text", token=None),
    "deepseek_v2": with_classes(deepseek.V2, "DeepseekV2", token=None),
    "deepseek_v3": with_classes(deepseek.V3, "DeepseekV3"),
    "t5": t5.T5,
    "switch_transformers": t5.SWITCH,
}
# Fields of ModelConfig that are of a run and not of its checkpoint.
RUNNING = (
    "dropout",
    "embedding_noise",
    "init_std",
    "dtype",
    "param_dtype",
    "remat",
    "context",
    "pipeline_slots",
    "pipeline_groups",
    "scan_unroll",
    "attention",
    "cuts",
)


def read_config(folder: Folder) -> tuple[str, ModelConfig]:
    """(model_type, our config) of a folder.

    Raises:
      CheckpointFolderError: a family that is not known, or a value of config.json that can't be read.
    """
    given = folder.config()
    name = given.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointFolderError(
            f"{folder.path}: config.json says model_type {name!r}; known are {', '.join(FAMILIES)}"
        )
    quantized.refuse_config(folder, given)
    family = FAMILIES[name]
    try:
        if not isinstance(given.get("id2label"), dict | list | None):
            classes.names(given)  # refuses it, for families count what is in it
        fields = family.fields(given | {"tensors": folder.tensors})
        architectures.check(name, family, given, fields)
        if fields.get("head") in ("sequence", "token"):
            classes.names(given)
        config = ModelConfig(**fields)
        dtype = precision.param_dtype(folder.tensors, family.table(config))
        return name, dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    except CheckpointFolderError as error:
        raise CheckpointFolderError(f"{folder.path}: {error}") from error
    except KeyError as error:
        raise CheckpointFolderError(f"{folder.path}: config.json has no {error}, which {name} needs") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointFolderError(f"{folder.path}: config.json: {error}") from error


def described_precision(folder: Folder, name: str, config: ModelConfig) -> str:
    """What becomes of the precision of a folder, in words."""
    return precision.described(folder.tensors, FAMILIES[name].table(config))


def family_of(config: ModelConfig) -> str:
    """The model_type that can hold a model of this config: whose description gives the same config back.

    Raises:
      CheckpointFolderError: none can.
    """
    differing = {}
    for name, family in FAMILIES.items():
        # AttributeError: of experts and the like, which a family has and this config has not.
        with contextlib.suppress(CheckpointFolderError, ValueError, KeyError, AttributeError):
            fields = {**family.fields(family.describe(config)), **{field: getattr(config, field) for field in RUNNING}}
            found = dataclasses.asdict(ModelConfig(**fields))
            differing[name] = [field for field, value in dataclasses.asdict(config).items() if found[field] != value]
            if not differing[name]:
                return name
    nearest = min(differing, key=lambda name: len(differing[name]), default=None)
    raise CheckpointFolderError(
        f"no family of checkpoints has just the parts of this model; the nearest is {nearest}, which has no place for "
        f"its values of {', '.join('model.' + field for field in differing[nearest])}"
    )


def read(folder: Folder, name: str, abstract_model):
    """The model of a folder; `abstract_model` is of its config, with shardings where there is a mesh."""
    return load.load(abstract_model, FAMILIES[name].table(abstract_model.config), folder)


def write(model, name: str, path, files: dict[str, str] | None = None, **extra) -> None:
    """The model as a checkpoint folder of the family `name`; `files` are further files by name, `extra` goes into
    config.json."""
    family = FAMILIES[name]
    described = {"architectures": [family.architecture], "model_type": name} | family.describe(model.config) | extra
    described["dtype"] = described["torch_dtype"] = model.config.param_dtype
    if "rope_parameters" in described:
        described |= rope_of_transformers_4(described["rope_parameters"])
    files = {"config.json": json_text(described)} | (files or {})
    load.save(model, family.table(model.config), path, files)
