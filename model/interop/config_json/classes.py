"""Decoders that score classes: transformers' ForSequenceClassification and ForTokenClassification of any family.

A linear layer on the hidden state after the last norm: of a text's last token without a bias, of tokens with one.
"""

import re
from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from model.interop.family import Family, linear_entries
from model.interop.table import Table


def names(config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes that config.json gives, in the order of their numbers; None where it gives none.

    Raises:
      ValueError: `id2label` is not a name for each number from 0 on.
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
                f"id2label has the key {key!r}; keys are numbers of classes, from 0 on, and values their names"
            )
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise ValueError(f"id2label calls class {key} {name!r}; a name must be a string")
        if str(name) in found.values():
            raise ValueError(f"id2label gives two classes the name {name!r}; each needs a name of its own")
        found[int(key)] = str(name)
    if sorted(found) != list(range(len(given))):
        numbers = ", ".join(map(str, sorted(found)))
        raise ValueError(f"id2label has the numbers {numbers}; those of {len(given)} classes are 0 to {len(given) - 1}")
    return [found[number] for number in range(len(given))]


def count(config: Mapping[str, Any]) -> int:
    """How many classes there are: as many as have names, else `num_labels`, else transformers' 2."""
    number = config.get("num_labels")
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"num_labels is {number!r}; it must be a whole number of at least 1")
    return len(names(config) or ()) or number or 2


def check_problem(config: Mapping[str, Any], classes: int) -> None:
    """ValueError where the scores of a text mean something else than one class, or a number where there is one."""
    given, usual = config.get("problem_type"), "regression" if classes == 1 else "single_label_classification"
    if given not in (None, usual):
        raise ValueError(f"problem_type is {given!r}; with {classes} labels only {usual!r} can be read")


def with_classes(base: Family, name: str, token: str | None = "score") -> Family:
    """The family of a causal language model that can also have heads for classes.

    Args:
      name: what transformers' names of its classes begin with.
      token: its name of the linear layer on tokens (on a text it is 'score'); None: it has no such class.
    """
    layers = {"sequence": "score"} | ({"token": token} if token else {})
    suffixes = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}

    def table(config: ModelConfig) -> Table:
        found = base.table(config)
        if config.head not in layers:
            return found
        # Nothing is unembedded: a file of a language model that this one was made of may still hold that layer.
        ignored = (*found.ignored, r"lm_head\.weight")
        return found._replace(
            entries=(*found.entries, *linear_entries("classifier", layers[config.head])), ignored=ignored, others={}
        )

    return base._replace(classes={**base.classes, **{name + suffixes[head]: head for head in layers}}, table=table)
