"""The head of a model: what `architectures` of config.json says, or the tensors of a file that says nothing.

A folder of T5EncoderModel, or of a reward model, has the model_type of its family and other tensors, or the same ones
with another meaning. So the class must be one that its family lists.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def head(model_type: str, classes: Mapping[str, str], config: Mapping[str, Any], tensors: Iterable[str]) -> str:
    """The head (a choice of ModelConfig.head).

    Args:
      classes: names of transformers' classes of the family -> the heads that they have.
      config: the content of config.json.
      tensors: names in the folder.

    Raises:
      ValueError: a class that is not read, or none where one is needed.
    """
    given = config.get("architectures")
    if not given:
        return _by_tensors(tensors, encoder="masked" in classes.values())
    if not isinstance(given, list) or len(given) > 1 or not isinstance(given[0], str):
        raise ValueError(f"architectures is {given!r}; it must be a list of the name of one class")
    # The case of letters does not count: the first conversions of LLaMA are LLaMAForCausalLM.
    found = next((head for name, head in classes.items() if name.lower() == given[0].lower()), None)
    if found is None:
        raise ValueError(
            f"architectures is {given[0]!r}, a class that can't be read; of model_type {model_type} these can: "
            + ", ".join(classes)
        )
    return found


def _by_tensors(tensors: Iterable[str], *, encoder: bool) -> str:
    parts = {part for name in tensors for part in name.split(".")[:2]}
    if not encoder:
        if parts & {"score", "classifier"}:
            raise ValueError(
                "architectures is absent, so what this classifier scores cannot be told; add the name of its class to "
                "config.json"
            )
        return "language_model"
    if parts & {"predictions", "lm_head"}:
        return "masked"
    if "classifier" not in parts:
        return "none"
    # RoBERTa's classifier has a layer of its own; the others' reads the pooler.
    return "sequence" if parts & {"pooler", "dense"} else "token"
