"""Decoders that score classes: transformers' ForSequenceClassification and ForTokenClassification of any family.

A linear layer on the hidden state after the last norm: of a text's last token without a bias, of tokens with one.
"""

from model.config import ModelConfig
from model.interop.family import Family, linear_entries
from model.interop.table import Table


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
