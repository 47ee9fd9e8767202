"""Checks `architectures` of config.json: a class of transformers that is built otherwise is refused by its name.

A folder of T5EncoderModel, or of a reward model, has the model_type of its family and other tensors, or the same ones
with another meaning. So the class must be the family's own, with one of the heads that are read.
"""

from collections.abc import Mapping
from typing import Any

from model.interop.family import Family
from model.interop.tensorfile import CheckpointFolderError

# Ends of transformers' names of classes, and the head that they mean; None: whichever the family has.
_HEADS = {
    "ForCausalLM": "language_model",
    "LMHeadModel": "language_model",
    "ForConditionalGeneration": "language_model",
    "WithLMHeadModel": "language_model",
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "Model": None,
}


def check(model_type: str, family: Family, config: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """
    Args:
      config: the content of config.json.
      fields: what the family reads out of it.

    Raises:
      CheckpointFolderError: a class that is not read.
    """
    given = config.get("architectures")
    if not given:
        return
    if not isinstance(given, list) or not isinstance(given[0], str):
        raise CheckpointFolderError(f"config.json: architectures is {given!r}; it must be a list of names of classes")
    if not _fits(family, given[0], fields):
        raise CheckpointFolderError(
            f"config.json says architectures {given[0]!r}, which is no model that can be read; of model_type "
            f"{model_type} these can: {', '.join(_readable(family, config))}"
        )


def _fits(family: Family, name: str, fields: Mapping[str, Any]) -> bool:
    """Whether a class is of the family, and its head the one that was read. The case of letters does not count: the
    first conversions of LLaMA are LLaMAForCausalLM."""
    stem = _stem(family)
    for end, head in _HEADS.items():
        if name.lower() in (f"{stem}{end}".lower(), f"{stem}Text{end}".lower()):
            return head in (None, fields.get("head", "language_model"))
    return False


def _readable(family: Family, config: Mapping[str, Any]) -> list[str]:
    names = [
        family.architecture,
        *(_stem(family) + end for end, head in _HEADS.items() if head in ("sequence", "token")),
    ]
    return [name for name in names if _fits(family, name, family.fields({**config, "architectures": [name]}))]


def _stem(family: Family) -> str:
    """What the names of a family's classes begin with."""
    return next(family.architecture.removesuffix(end) for end in _HEADS if family.architecture.endswith(end))
