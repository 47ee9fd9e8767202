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
    given = config.get("id2label")
    if not given:
        return None
    given = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(given, dict):
        raise ValueError(f"id2label is {given!r}; it must map numbers to names of classes")
    found = {}
    for key, name in given.items():
        if not re.fullmatch("[0-9]+", str(key)):
            raise ValueError(
                f"id2label has the key {key!r}; keys are numbers of classes, from 0 on, and values their names"
            )
        if not isinstance(name, str | int | float):
            raise ValueError(f"id2label calls class {key} {name!r}; a name must be a string")
        found[int(key)] = str(name)
    if sorted(found) != list(range(len(given))):
        numbers = ", ".join(map(str, sorted(found)))
        raise ValueError(f"id2label has the numbers {numbers}; those of {len(given)} classes are 0 to {len(given) - 1}")
    return [found[number] for number in range(len(given))]


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

    return base._replace(classes=base.classes | {name + suffixes[head]: head for head in layers}, table=table)
