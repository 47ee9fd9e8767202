"""The families that can be read and written, and reading and writing of a whole checkpoint folder."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from model.config import ModelConfig
from model.interop import load, table
from model.interop.config_json import classes, heads, rope
from model.interop.config_json.classes import with_classes
from model.interop.config_json.fields import Given
from model.interop.family import Family, labels
from model.interop.files import precision, quantized
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.interop.files.writer import json_text
from model.interop.tables import (
    bert,
    bloom,
    deepseek,
    gemma,
    gpt2,
    llama,
    mixture,
    opt,
    phi3,
    t5,
)

FAMILIES: dict[str, Family] = {
    "albert": bert.ALBERT,
    "bert": bert.BERT,
    "roberta": bert.ROBERTA,
    "gpt2": with_classes(gpt2.GPT2, "GPT2", token="classifier"),
    "llama": with_classes(llama.LLAMA, "Llama"),
    "mistral": with_classes(llama.MISTRAL, "Mistral"),
    "phi3": with_classes(phi3.PHI3, "Phi3"),
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
# Fields of ModelConfig that belong to a run, not to its checkpoint.
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
    """Returns (model_type, our config) of a folder.

    Raises:
      CheckpointFolderError: the family is unknown, or a field of config.json can't be read.
    """
    values = folder.config()
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointFolderError(
            f"{folder.path}: config.json says model_type {name!r}; choose from {', '.join(FAMILIES)}"
        )
    quantized.refuse_config(folder, values)
    try:
        fields = model_fields(name, values, folder.tensors)
    except ValueError as error:
        raise CheckpointFolderError(f"{folder.path}: config.json: {error}") from error
    try:
        config = ModelConfig(**fields)
    except ValueError as error:
        message = given_of(name, values).in_their_words(str(error))
        raise CheckpointFolderError(f"{folder.path}: config.json: {message}") from error
    config = _with_own_head(folder, FAMILIES[name], config)
    dtype = precision.param_dtype(folder.tensors, FAMILIES[name].table(config))
    return name, dataclasses.replace(config, dtype=dtype, param_dtype=dtype)


def given_of(name: str, values: Mapping[str, Any]) -> Given:
    """Returns config.json's fields, with the defaults of the family `name`."""
    return Given(values, FAMILIES[name].known)


def model_fields(name: str, values: Mapping[str, Any], tensors=()) -> dict[str, Any]:
    """Returns the fields of ModelConfig for a family and the content of its config.json.

    Args:
      tensors: tensor names in the folder, which determine the head if config.json has no `architectures`.

    Raises:
      ValueError: a field can't be read; names it.
    """
    head = heads.head(name, FAMILIES[name].classes, values, tensors)
    given = given_of(name, values)
    try:
        fields = FAMILIES[name].fields(given)
    except ValueError as error:  # from a part of the config, whose messages have our field names
        raise ValueError(given.in_their_words(str(error))) from error
    if head != "language_model":  # ModelConfig's default
        fields["head"] = head
    if _has_classes(head, fields.get("architecture")):
        fields["num_labels"] = classes.count(given)
    if head == "sequence":
        classes.check_problem(given, fields["num_labels"])
    return fields


def _has_classes(head: str, architecture: str | None) -> bool:
    """Returns whether a config.json names classes; encoders' do with any head."""
    return head in ("sequence", "token") or architecture == "encoder"


def _with_own_head(folder: Folder, family: Family, config: ModelConfig) -> ModelConfig:
    """Ties or unties the output layer according to the file, as transformers does.

    An output layer that the file stores, and that differs from the embedding table, is separate even if config.json
    says that it is tied. T5's is tied if the file has none.
    """
    if config.head not in ("language_model", "masked"):
        return config
    untied = dataclasses.replace(config, tied=False)
    found = family.table(untied)
    theirs = {entry.path: entry.name for entry in found.entries}
    held = table.names(found, folder)
    head, words = held.get(theirs["unembedding/table"]), held.get(theirs["inputs/tokens/table"])
    if config.tied and head and words and not table.same(folder, words, head):
        return untied
    if not config.tied and not head and family.ties_absent_head:
        return dataclasses.replace(config, tied=True)
    return config


def described_precision(folder: Folder, name: str, config: ModelConfig) -> str:
    """Returns a description of the model's precision and what it means for the folder's tensors."""
    return precision.described(folder.tensors, FAMILIES[name].table(config))


def describe(name: str, config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of a model as a checkpoint of the family `name`.

    Raises:
      CheckpointFolderError: config.json can't represent some of the config.
    """
    try:
        lost = _lost(name, config)
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointFolderError(f"a checkpoint of {name} can't hold this model: {error}") from error
    if lost:
        raise CheckpointFolderError(
            f"a checkpoint of {name} has no place for this model's {', '.join('model.' + field for field in lost)}"
        )
    return _described(name, config)


def _described(name: str, config: ModelConfig) -> dict[str, Any]:
    family = FAMILIES[name]
    names = [known for known, head in family.classes.items() if head == config.head]
    described = {"architectures": names[:1], "model_type": name} | family.describe(config)
    return described | (labels(config) if _has_classes(config.head, config.architecture) else {})


def _lost(name: str, config: ModelConfig) -> list[str]:
    """Returns the fields of a config that change when it is written to config.json and read back.

    Raises:
      ValueError, KeyError, AttributeError: the config lacks a part that the family needs, such as experts.
    """
    fields = {**model_fields(name, _described(name, config)), **{field: getattr(config, field) for field in RUNNING}}
    found = dataclasses.asdict(ModelConfig(**fields))
    wanted = dataclasses.asdict(config)
    for pattern in ("attention_pattern", "mlp_pattern"):  # compare them layer by layer
        wanted[pattern], found[pattern] = (
            tuple(fields[pattern][i % len(fields[pattern])] for i in range(config.num_layers))
            for fields in (wanted, found)
        )
    return [field for field, value in wanted.items() if found[field] != value]


def family_of(config: ModelConfig) -> str:
    """Returns the model_type that can hold a model of this config: reading its config.json returns the same config.

    Raises:
      CheckpointFolderError: there is none.
    """
    differing = {}
    for name in FAMILIES:
        with contextlib.suppress(CheckpointFolderError, ValueError, KeyError, AttributeError):
            differing[name] = _lost(name, config)
            if not differing[name]:
                return name
    if not differing:
        raise CheckpointFolderError("no family of checkpoints has exactly the parts of this model, or nearly so")
    nearest = min(differing, key=lambda name: len(differing[name]))
    raise CheckpointFolderError(
        f"no family of checkpoints has exactly the parts of this model; the nearest is {nearest}, which can't hold its "
        f"values of {', '.join('model.' + field for field in differing[nearest])}"
    )


def changes_weights(folder: Folder, name: str) -> bool:
    """Returns whether weights are read with a divisor, so that adapters for the folder's model would not fit ours."""
    family, config = FAMILIES[name], read_config(folder)[1]
    found = family.table_to_read(given_of(name, folder.config()), family.table(config))
    return any(entry.divisor is not None for entry in found.entries)


def read(folder: Folder, name: str, abstract_model, draw_pooler: bool = False):
    """Returns the model of a folder.

    Args:
      abstract_model: a model of its config, with shardings if there is a mesh.
      draw_pooler: give an encoder without a head, whose file has no pooler, a random one, as transformers does.

    Raises:
      CheckpointFolderError: the folder does not hold this model, or a file is damaged.
    """
    family, config = FAMILIES[name], abstract_model.config
    found = family.table_to_read(given_of(name, folder.config()), family.table(config))
    pooler = [entry for entry in found.entries if entry.path.startswith("pooler/")] if config.head == "none" else []
    held = table.names(found, folder) if pooler or draw_pooler else {}
    lacking = bool(pooler) and not any(entry.name in held for entry in pooler)
    if lacking != draw_pooler:
        raise CheckpointFolderError(
            f"{folder.path} has no pooler, which computes one vector from a text's first token; draw_pooler gives it a "
            "random one, as transformers does"
            if lacking
            else f"{folder.path}: draw_pooler is for an encoder without a head and without a pooler; leave it out"
        )
    if not lacking:
        return load.load(abstract_model, found, folder)
    zeros = [dataclasses.replace(entry, absent=0.0) if entry in pooler else entry for entry in found.entries]
    model = load.load(abstract_model, found._replace(entries=tuple(zeros)), folder)
    weight = model.pooler.weight
    drawn = config.init_std * jax.random.normal(jax.random.key(0), weight.shape, weight.dtype)
    weight[...] = jax.device_put(drawn, weight[...].sharding)
    return model


def write(model, name: str, path, files: dict[str, str] | None = None, **extra) -> None:
    """Writes the model as a checkpoint folder of the family `name`.

    Args:
      files: contents of additional text files, by name.
      extra: additional fields of config.json.

    Raises:
      CheckpointFolderError: the family can't represent this model; raised before anything is written.
    """
    described = describe(name, model.config) | extra
    described["dtype"] = described["torch_dtype"] = model.config.param_dtype
    if "rope_parameters" in described:
        described |= rope.of_transformers_4(described["rope_parameters"])
    files = {"config.json": json_text(described)} | (files or {})
    load.save(model, FAMILIES[name].table(model.config), path, files)
