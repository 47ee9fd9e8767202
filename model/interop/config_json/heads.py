"""The head of a model: from `architectures` in config.json, or from the file's tensors if that is absent.

Folders of T5EncoderModel or of a reward model have their family's model_type but other tensors, or the same tensors
with another meaning. So the class must be one that its family lists.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def head(model_type: str, classes: Mapping[str, str], config: Mapping[str, Any], tensors: Iterable[str]) -> str:
    """Returns the head (a choice of ModelConfig.head).

    Args:
      classes: the family's transformers classes -> their heads.
      config: the content of config.json.
      tensors: tensor names in the folder.

    Raises:
      ValueError: the class can't be read, or is absent where it is needed.
    """
    given = config.get("architectures")
    if not given:
        return _by_tensors(tensors, encoder="masked" in classes.values())
    if not isinstance(given, list) or len(given) > 1 or not isinstance(given[0], str):
        raise ValueError(f"architectures is {given!r}; it must be a list with the name of one class")
    # Case-insensitive: the first conversions of LLaMA are LLaMAForCausalLM.
    found = next((head for name, head in classes.items() if name.lower() == given[0].lower()), None)
    if found is None:
        raise ValueError(
            f"architectures is {given[0]!r}, a class that can't be read; choose for model_type {model_type} from "
            + ", ".join(classes)
        )
    return found


def _by_tensors(tensors: Iterable[str], *, encoder: bool) -> str:
    parts = {part for name in tensors for part in name.split(".")[:2]}
    if not encoder:
        if parts & {"score", "classifier"}:
            raise ValueError(
                "architectures is absent, so it is unknown what this classifier scores; add the name of its class to "
                "config.json"
            )
        return "language_model"
    if parts & {"predictions", "lm_head"}:
        return "masked"
    if "classifier" not in parts:
        return "none"
    # RoBERTa's sequence head has its own dense layer; the others' reads the pooler.
    return "sequence" if parts & {"pooler", "dense"} else "token"
