"""Decoders that score classes: transformers' ForSequenceClassification and ForTokenClassification of any family.

A linear layer on the hidden state after the last norm: of a text's last token without a bias, of tokens with one.
"""

from model.config import ModelConfig
from model.interop import family
from model.interop.family import Family, linear_entries
from model.interop.tensorfile import CheckpointFolderError

_HEADS = {"ForSequenceClassification": "sequence", "ForTokenClassification": "token"}


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
