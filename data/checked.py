"""Checks the `data` block of a config before preparation starts, which may take hours."""

from collections.abc import Mapping
from typing import Any

from data import copies
from data.batch import DataError
from data.clean.splits import RULES
from data.examples import kinds
from data.rows import augment, corrupt
from data.rows.mixture import Mixture
from data.settings import merged
from data.tokens import tokenizer as tokenizers
from data.tokens.backends import KINDS
from data.tokens.templates import TEMPLATES

FIELDS = {
    "sources": None,
    "path": "",
    "format": "chat",
    "validation": 0.05,
    "split": "document",
    "copies": "keep",
    "seq_len": None,
    "tokenizer": None,
    "max_bad_lines": 100,
    "corruption": None,
    "augment": None,
}
TOKENIZER_FIELDS = {"kind": "bpe", "vocab_size": 0, "path": "", "mask": False, "sentinels": 0, "chat": ""}


def checked(given: Mapping[str, Any], encoder: bool) -> dict[str, Any]:
    """Returns the block with its defaults filled in, and `sources` as a list of (spec, weight).

    Args:
      given: the fields that the config sets.
      encoder: the rows are for a model with an encoder beside its decoder.

    Raises:
      DataError: a field is unknown, has a wrong value, or contradicts another one.
    """
    config = merged(given, FIELDS | dict.fromkeys(kinds.KINDS), "data")
    config["tokenizer"] = merged(config["tokenizer"] or {}, TOKENIZER_FIELDS, "data.tokenizer")
    config["sources"] = kinds.sources(config)
    config |= kinds.checked(config)
    _check_sources(config["sources"])
    kinds.batch_channels(given, encoder)  # raises an error for sources that can't share a batch
    for key in ("seq_len", "max_bad_lines"):
        least = 1 if key == "seq_len" else 0
        if not (isinstance(config[key], int) and config[key] >= least):
            raise DataError(f"data.{key} must be a whole number of at least {least}, not {config[key]!r}.")
    if not (isinstance(config["validation"], int | float) and 0 <= config["validation"] < 1):
        raise DataError(f"data.validation must be a fraction from 0 up to 1, not {config['validation']!r}.")
    if config["split"] not in RULES:
        raise DataError(f"data.split must be one of {', '.join(RULES)}, not {config['split']!r}.")
    if config["copies"] not in copies.CHOICES:
        raise DataError(f"data.copies must be one of {', '.join(copies.CHOICES)}, not {config['copies']!r}.")
    _check_tokenizer(config)
    examples = sorted({kinds.kind_of(spec) for spec, _ in config["sources"]} - {kinds.TEXT})
    for kind in examples:
        kinds.check_encoder(kind, encoder)
        if config["tokenizer"]["kind"] != "file":
            kinds.KINDS[kind].check_trained(config[kind], specials(config["tokenizer"]))
    tokenizer = tokenizers.load(config["tokenizer"]["path"]) if config["tokenizer"]["kind"] == "file" else None
    _check_augment(config, config["tokenizer"]["mask"] if tokenizer is None else tokenizer.mask_id is not None)
    if tokenizer is not None:
        for kind in examples:
            kinds.KINDS[kind].identity(config[kind], tokenizer, encoder)
    return config


def _check_sources(sources: list[tuple[str, float]]) -> None:
    if not sources:
        raise DataError(
            "data.sources is empty: name at least one, like (('stdlib', 1.0),), or set data.path to a file."
        )
    for spec, weight in sources:
        if weight < 0:
            raise DataError(f"The weight of {spec} must not be negative, but it is {weight}.")
    weights = [weight for _, weight in sources if weight]
    if not weights:
        raise DataError(
            "All data.sources have weight 0: they are only evaluated. Raise a weight to train on its source."
        )
    Mixture(weights)  # raises an error for bad weights now, not after the long work


def _check_augment(config: dict[str, Any], mask: bool) -> None:
    if not any(augment.check(config["augment"] or {}, mask).values()):
        return
    found = {kinds.kind_of(spec) for spec, _ in config["sources"]} - {kinds.TEXT}
    if not any(kinds.KINDS[kind].augmentable(config[kind]) for kind in found):
        raise DataError(
            "data.augment changes only words that are not targets, and not the prompt of answers that are compared: in "
            "data.sources there is nothing to change. Set its rates to 0."
        )


def specials(tokenizer: Mapping[str, Any]) -> list[str]:
    """Returns the names of the special tokens that a tokenizer trained with these fields has beside the usual ones."""
    markers = TEMPLATES[tokenizer["chat"]].markers if tokenizer["chat"] else ()
    return [*tokenizers.specials(tokenizer["mask"], tokenizer["sentinels"]), *markers]


def _check_tokenizer(config: dict[str, Any]) -> None:
    kind, path = config["tokenizer"]["kind"], config["tokenizer"]["path"]
    if kind not in (*KINDS, "file"):
        raise DataError(f"data.tokenizer.kind must be one of {', '.join(KINDS)}, file, not {kind!r}.")
    if kind == "file" and not path:
        raise DataError("data.tokenizer.kind is 'file', so data.tokenizer.path must name a tokenizer.json.")
    mask, sentinels = config["tokenizer"]["mask"], config["tokenizer"]["sentinels"]
    if not (isinstance(mask, bool) and isinstance(sentinels, int) and sentinels >= 0):
        raise DataError(
            "data.tokenizer.mask must be True or False and data.tokenizer.sentinels a whole number of at least 0, not "
            f"{mask!r} and {sentinels!r}."
        )
    chat = config["tokenizer"]["chat"]
    if chat not in ("", *TEMPLATES):
        raise DataError(f"data.tokenizer.chat must be '' or one of {', '.join(TEMPLATES)}, not {chat!r}.")
    if kind == "file" and (mask or sentinels or chat):
        raise DataError(
            "data.tokenizer.mask, .sentinels and .chat are for tokenizers trained here, but a file is used unchanged: "
            "set data.tokenizer.mask to False, data.tokenizer.sentinels to 0 and data.tokenizer.chat to ''."
        )
    size = config["tokenizer"]["vocab_size"]
    if not (isinstance(size, int) and size >= (kind == "bpe")):
        raise DataError(
            f"data.tokenizer.vocab_size is {size!r}; a tokenizer of kind {kind} needs a whole number of at least "
            f"{int(kind == 'bpe')}."
        )
    if all(kinds.kind_of(spec) != kinds.TEXT for spec, _ in config["sources"]):
        return  # examples are never corrupted
    corruption = config["corruption"] or {}
    if kind == "file" and corruption.get("kind", "none") != "none":
        corrupt.make(corruption, tokenizers.load(path), config["seq_len"])
    else:
        corrupt.check(corruption, config["seq_len"], mask, sentinels)
