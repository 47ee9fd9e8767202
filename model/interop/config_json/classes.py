"""Decoders with classification heads: transformers' ForSequenceClassification and ForTokenClassification of any family.

The head is a linear layer on the hidden states after the final norm: without a bias on a text's last token, or with a
bias on every token.
"""

import re
from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from model.interop.family import Family, linear_entries
from model.interop.table import Table


def names(config: Mapping[str, Any]) -> list[str] | None:
    """Returns the class names in config.json, in the order of their numbers; None if it has none.

    Raises:
      ValueError: `id2label` does not map each number from 0 on to a name.
    """
    given, count = config.get("id2label"), config.get("num_labels")
    if not given and isinstance(config.get("label2id"), dict):
        given = {number: name for name, number in config["label2id"].items()}
    if not given:
        return None
    if count is not None and count != len(given):
        raise ValueError(f"num_labels is {count!r}, but id2label has {len(given)} classes")
    given = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(given, dict):
        raise ValueError(f"id2label is {given!r}; it must map numbers to names of classes")
    found: dict[int, str] = {}
    for key, name in given.items():
        if not re.fullmatch("[0-9]+", str(key)):
            raise ValueError(
                f"id2label has the key {key!r}; keys must be class numbers from 0 on, and values class names"
            )
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise ValueError(f"id2label calls class {key} {name!r}; a name must be a string")
        if str(name) in found.values():
            raise ValueError(f"id2label gives two classes the name {name!r}; names must be unique")
        found[int(key)] = str(name)
    if sorted(found) != list(range(len(given))):
        numbers = ", ".join(map(str, sorted(found)))
        raise ValueError(
            f"id2label has the numbers {numbers}; the numbers of {len(given)} classes must be 0 to {len(given) - 1}"
        )
    return [found[number] for number in range(len(given))]


def count(config: Mapping[str, Any]) -> int:
    """Returns the number of classes: the number of names, else `num_labels`, else transformers' default of 2."""
    number = config.get("num_labels")
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"num_labels is {number!r}; it must be a whole number of at least 1")
    return len(names(config) or ()) or number or 2


def check_problem(config: Mapping[str, Any], classes: int) -> None:
    """Refuses problem types other than one class per text, or regression if there is one label.

    Raises:
      ValueError: problem_type can't be read.
    """
    given, usual = config.get("problem_type"), "regression" if classes == 1 else "single_label_classification"
    if given not in (None, usual):
        raise ValueError(f"problem_type is {given!r}; with {classes} labels only {usual!r} can be read")


def with_classes(base: Family, name: str, token: str | None = "score") -> Family:
    """Returns the family of a causal language model, extended by classification heads.

    Args:
      name: the prefix of transformers' class names.
      token: transformers' name of the token head's linear layer (a sequence head's is 'score'); None: no token head.
    """
    layers = {"sequence": "score"} | ({"token": token} if token else {})
    suffixes = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}

    def table(config: ModelConfig) -> Table:
        found = base.table(config)
        if config.head not in layers:
            return found
        # There is no output layer, but a file that was made from a language model may still contain one.
        ignored = (*found.ignored, r"lm_head\.weight")
        return found._replace(
            entries=(*found.entries, *linear_entries("classifier", layers[config.head])), ignored=ignored, others={}
        )

    return base._replace(classes={**base.classes, **{name + suffixes[head]: head for head in layers}}, table=table)
