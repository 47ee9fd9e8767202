"""Decoders that score classes: transformers' ForSequenceClassification and ForTokenClassification of any family.

A linear layer on the hidden state after the last norm: of a text's last token without a bias, of tokens with one.
"""

import re

from model.config import ModelConfig
from model.interop import family
from model.interop.family import Family, linear_entries
from model.interop.tensorfile import CheckpointFolderError

_HEADS = {"ForSequenceClassification": "sequence", "ForTokenClassification": "token"}


def names(config: dict) -> list[str] | None:
    """The names of the classes that config.json gives, in the order of their numbers; None where it gives none.

    Raises:
      CheckpointFolderError: `id2label` is not a name for each number from 0 on.
    """
    given = config.get("id2label")
    if not given:
        return None
    given = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(given, dict):
        raise CheckpointFolderError(f"config.json: id2label is {given!r}; it must map numbers to names of classes")
    found = {}
    for key, name in given.items():
        if not re.fullmatch("[0-9]+", str(key)):
            raise CheckpointFolderError(
                f"config.json: id2label has the key {key!r}; keys are numbers of classes, from 0 on, and values their "
                "names"
            )
        if not isinstance(name, str | int | float):
            raise CheckpointFolderError(f"config.json: id2label calls class {key} {name!r}; a name must be a string")
        found[int(key)] = str(name)
    if sorted(found) != list(range(len(given))):
        numbers = ", ".join(map(str, sorted(found)))
        raise CheckpointFolderError(
            f"config.json: id2label has the numbers {numbers}; those of {len(given)} classes are 0 to {len(given) - 1}"
        )
    return [found[number] for number in range(len(given))]


def with_classes(base: Family, name: str, token: str | None = "score") -> Family:
    """The family of a causal language model that can also have heads for classes.

    Args:
      name: what transformers' names of its classes begin with.
      token: its name of the linear layer on tokens (on a text it is 'score'); None: it has no such class.
    """
    layers = {"sequence": "score"} | ({"token": token} if token else {})
    suffixes = {head: suffix for suffix, head in _HEADS.items() if head in layers}

    def fields(c: dict) -> dict:
        given = (c.get("architectures") or [""])[0]
        head = next((head for head, suffix in suffixes.items() if given == name + suffix), None)
        return base.fields(c) | (dict(head=head, num_labels=family.num_labels(c)) if head else {})

    def describe(config: ModelConfig) -> dict:
        if config.head == "language_model":
            return base.describe(config)
        if config.head not in suffixes:
            raise CheckpointFolderError(f"transformers has no {name} with the head {config.head!r}")
        return base.describe(config) | family.labels(config) | {"architectures": [name + suffixes[config.head]]}

    def table(config: ModelConfig):
        found = base.table(config)
        entries = linear_entries("classifier", layers[config.head]) if config.head in layers else ()
        return found._replace(entries=(*found.entries, *entries))

    return Family(base.architecture, fields, describe, table)
