"""Reads from a config the architecture of its model, its objective, and which parameters train."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from data.checked import specials
from data.tokens import tokenizer as tokenizers
from data.tokens.tokenizer import Tokenizer
from launch.program.checking import ConfigError, checking
from model import count, patterns
from model.adapt.prompt import Prompt
from model.adapt.tuning import Tuning
from model.adapt.tuning import make as make_tuning
from model.compress.quantize import Settings
from model.config import ModelConfig
from train.objectives import table
from train.objectives.objective import Objective


def model_config(config: ConfigDict, tokenizer_size: int = 0, num_labels: int = 0) -> ModelConfig:
    """Returns the architecture that `config.model` describes; its context has room for the rows of the data.

    Some fields may be left to the data. A vocab_size of 0 becomes the tokenizer's size, rounded up to a multiple of 64
    so that it splits over a mesh. num_labels of 0 becomes the number of labels. A head of '' becomes the objective's
    head for this kind of data.

    Args:
      config: the whole config; `adapt` and `train_only` decide where layers are split into separate stacks.
      tokenizer_size: number of tokens; 0: unknown.
      num_labels: number of scores that the labels need; 0: unknown.

    Raises:
      ConfigError: a field is unknown, its value is not possible, or it does not fit the data.
    """
    fields = config.model.to_dict()
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"config.model.{name} is not a field of the model" + (f"; did you mean {near[0]}?" if near else "")
            )
    fields |= _left_to_data(config, fields, tokenizer_size, num_labels)
    with checking("config.model"):
        model = ModelConfig(**fields)
    trains = tuning(config)  # layers that train differently are in separate stacks
    with checking("config"):
        model = dataclasses.replace(model, cuts=trains.cuts(model, count.names(model)))
    if config.data.seq_len > model.max_length:
        raise ConfigError(
            f"config.data.seq_len {config.data.seq_len} is longer than config.model.max_length {model.max_length}"
        )
    return model


def _left_to_data(config: ConfigDict, fields: dict, tokenizer_size: int, num_labels: int) -> dict:
    """Returns the fields that the config leaves to the data, and checks that those which it sets fit the data."""
    found: dict[str, Any] = {}
    if not fields["vocab_size"] and tokenizer_size:
        found["vocab_size"] = -(-tokenizer_size // 64) * 64
    elif fields["vocab_size"] < tokenizer_size:
        raise ConfigError(
            f"config.model.vocab_size is {fields['vocab_size']}, but the tokenizer has {tokenizer_size} tokens; raise "
            "it, set it to 0 (the tokenizer's), or make the tokenizer smaller (config.data.tokenizer.vocab_size)"
        )
    if fields.get("head") == "":
        found["head"] = objective(config).head(config.data)
    if fields.get("num_labels") == 0:
        found["num_labels"] = num_labels
    elif num_labels and fields.get("num_labels", num_labels) != num_labels:
        raise ConfigError(
            f"config.model.num_labels is {fields['num_labels']}, but the labels need {num_labels}; set it to 0 (as "
            "many as the labels need)"
        )
    return found


def planned_tokenizer_size(config: ConfigDict) -> int:
    """Returns the size of the tokenizer that config.data will have, before it is trained; 0: the model has its own.

    Raises:
      ConfigError: the size depends on the data.
    """
    tokenizer = config.data.tokenizer
    if config.model.vocab_size:
        return 0
    if tokenizer.kind == "file":
        return tokenizers.load(tokenizer.path).vocab_size
    if tokenizer.kind == "byte":
        return 256 + 1 + len(specials(tokenizer))  # all bytes, the end of a text, and further special tokens
    if not tokenizer.vocab_size:
        raise ConfigError(
            f"config.model.vocab_size and config.data.tokenizer.vocab_size are 0, and the size of a tokenizer of kind "
            f"{tokenizer.kind} depends on the data; set config.model.vocab_size"
        )
    return tokenizer.vocab_size


def objective(config: ConfigDict, labels: Mapping | None = None) -> Objective:
    """Returns the objective that `config.objective` describes.

    Args:
      config: the whole config.
      labels: facts about the labels of the data (Prepared.labels); None: there are none, or they are not known yet.

    Raises:
      ConfigError: the objective or a field is unknown, or a value is not possible.
    """
    try:
        return table.make(config.objective).about(labels)
    except (ValueError, TypeError) as error:  # the message begins with the field's name
        raise ConfigError(f"config.objective.{error}") from error


def tuning(config: ConfigDict, words: Tokenizer | None = None) -> Tuning:
    """Returns which parameters train, and with which adapter: the blocks `adapt` and `train_only` of a config.

    Args:
      config: the whole config.
      words: the tokenizer, for prompt tuning that starts from a text (`adapt.init_text`); None: the text is ignored.
    """
    fields = config.adapt.to_dict()
    text = fields.pop("init_text", "")
    with checking("config"):
        train_only = patterns.checked(config.train_only, "train_only", bool)
        if "targets" in fields:
            fields["targets"] = patterns.checked(fields["targets"], "adapt.targets", bool)
    with checking("config.adapt"):
        if text and words is not None:
            fields["init_ids"] = tuple(words.encode(text))
        return make_tuning(fields, train_only)


def base_fields(form: Settings | None) -> dict:
    """Returns the fields of the block `adapt` that describe a base in this form; {} for float weights (None)."""
    if form is None:
        return {}
    fields = form.fields()
    return {"base": fields.pop("method")} | fields


def prefix(config: ConfigDict) -> tuple[int, ...]:
    """Returns the ids that prompt tuning puts before every example; () for other methods."""
    method = tuning(config).method
    return method.ids(config.model.vocab_size) if isinstance(method, Prompt) else ()
