"""From a config to the architecture of its model, to what of it trains, and to what it learns."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

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
    """The block `model` of a config, with room for the rows of its data.

    What it leaves to the data comes from there: a vocabulary of 0 is the tokenizer's, rounded up so that it splits over
    a mesh; 0 labels are as many as there are, and a head of '' is the one for their kind.
    """
    fields = config.model.to_dict()
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(f"config.model.{name} is no field of the model" + (f"; is it {near[0]}?" if near else ""))
    fields |= _left_to_data(config, fields, tokenizer_size, num_labels)
    with checking("config.model"):
        model = ModelConfig(**fields)
    parted = tuning(config)  # where the stacks are parted follows from what trains
    with checking("config"):
        model = dataclasses.replace(model, cuts=parted.cuts(model, count.names(model)))
    if config.data.seq_len > model.max_length:
        raise ConfigError(
            f"config.data.seq_len {config.data.seq_len} is longer than config.model.max_length {model.max_length}"
        )
    return model


def _left_to_data(config: ConfigDict, fields: dict, tokenizer_size: int, num_labels: int) -> dict:
    """The fields that follow from the data where the config does not say them; where it does, they must fit these."""
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
            "many as there are)"
        )
    return found


def objective(config: ConfigDict, labels: Mapping | None = None) -> Objective:
    """The block `objective` of a config as an object.

    Args:
      labels: what is known of those that are learnt (Prepared.labels).

    Raises:
      ConfigError: an unknown objective, an unknown field, or a value that is not possible.
    """
    try:
        return table.make(config.objective).about(labels)
    except (ValueError, TypeError) as error:  # it begins with the field's name
        raise ConfigError(f"config.objective.{error}") from error


def tuning(config: ConfigDict, words: Tokenizer | None = None) -> Tuning:
    """What of the model trains: the blocks `adapt` and `train_only` of a config.

    Args:
      words: for an adapter that begins with a text.
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
    """What the block `adapt` says of a base that is kept so."""
    if form is None:
        return {}
    fields = form.fields()
    return {"base": fields.pop("method")} | fields


def prefix(config: ConfigDict) -> tuple[int, ...]:
    """The ids that an example begins with: of prompt tuning."""
    method = tuning(config).method
    return method.ids(config.model.vocab_size) if isinstance(method, Prompt) else ()
