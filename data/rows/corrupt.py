"""Corruption of packed rows, for denoising objectives: the model learns to restore the original tokens.

    masked   masked language modelling, for encoders (data/rows/masked.py)
    spans    span corruption, for encoder-decoders (data/rows/spans.py)

A row has another place in the stream in each epoch, so it gets a new mask each time (RoBERTa's dynamic masking,
arXiv:1907.11692, section 4.1). Held-out rows get the same mask each time, from `VALIDATION_SEED`.

Left out: BERT's next-sentence prediction and static masks, which RoBERTa found no better; BERT's [SEP] after a text,
because packed rows hold only the token that begins one; and T5's longer inputs, which fill the encoder's row after
corruption. Rows are packed before corruption, so about a tenth of the encoder's row stays empty.
"""

from collections.abc import Mapping
from typing import Any

from data.batch import DataError
from data.rows.masked import Masked
from data.rows.spans import Spans, span_counts
from data.settings import merged
from data.tokens.tokenizer import Tokenizer

FIELDS: dict[str, dict[str, Any]] = {
    "none": {},
    # A share `rate` of all tokens is predicted. Of these, a share `mask` become the mask token, `random` become another
    # token, and the rest stay unchanged.
    "masked": {"rate": 0.15, "mask": 0.8, "random": 0.1, "whole_words": False},
    # `start_id` is the decoder's first input; None: that of a published tokenizer (T5's 0), else the end token.
    "spans": {"rate": 0.15, "mean_length": 3.0, "start_id": None},
}
VALIDATION_SEED = 0

Corruption = Masked | Spans


def make(given: Mapping[str, Any], tokenizer: Tokenizer, seq_len: int) -> Corruption | None:
    """Returns the corruption that a config's data.corruption describes, or None for kind 'none'.

    Raises:
      DataError: as in `check`, or `start_id` is outside the vocabulary.
    """
    settings = check(given, seq_len, tokenizer.mask_id is not None, len(tokenizer.sentinel_ids))
    if settings["kind"] == "none":
        return None
    if settings["kind"] == "masked":
        return Masked(tokenizer, settings)
    start = settings["start_id"]
    if start is not None and start >= tokenizer.vocab_size:
        raise DataError(f"data.corruption.start_id is {start}, but the tokenizer has {tokenizer.vocab_size} tokens.")
    return Spans(tokenizer, settings)


def check(given: Mapping[str, Any], seq_len: int, mask: bool, sentinels: int) -> dict[str, Any]:
    """Returns the settings, with defaults filled in.

    Args:
      given: the config's data.corruption.
      seq_len: length of a row, in tokens.
      mask: whether the tokenizer has a mask token.
      sentinels: how many sentinels the tokenizer has.

    Raises:
      DataError: a field is unknown or out of range, or the tokenizer lacks the special tokens.
    """
    kind = given.get("kind", "none")
    if kind not in FIELDS:
        raise DataError(f"data.corruption.kind must be one of {', '.join(FIELDS)}, not {kind!r}.")
    settings = merged(given, {"kind": kind, **FIELDS[kind]}, "data.corruption")
    for name in ("rate", "mask", "random"):
        if name in settings and not (isinstance(settings[name], int | float) and 0 <= settings[name] <= 1):
            raise DataError(f"data.corruption.{name} must be a fraction from 0 to 1, not {settings[name]!r}.")
    if settings.get("rate") == 0:
        raise DataError("data.corruption.rate is 0: set data.corruption.kind to 'none' to corrupt nothing.")
    if kind == "masked":
        if settings["mask"] + settings["random"] > 1 + 1e-9:
            raise DataError(
                "data.corruption.mask and data.corruption.random are shares of the same tokens, so their sum must be "
                "at most 1."
            )
        if not isinstance(settings["whole_words"], bool):
            raise DataError(f"data.corruption.whole_words must be True or False, not {settings['whole_words']!r}.")
        if not mask:
            raise DataError(
                "data.corruption.kind is 'masked', but the tokenizer has no mask token ([MASK], <mask> or <|mask|>): "
                "if it is trained here, set data.tokenizer.mask to True; else use a tokenizer.json that has one."
            )
    if kind == "spans":
        length, start = settings["mean_length"], settings["start_id"]
        if not (isinstance(length, int | float) and 1 <= length < float("inf")):
            raise DataError(f"data.corruption.mean_length must be a number of at least 1, not {length!r}.")
        if not (start is None or (isinstance(start, int) and start >= 0)):
            raise DataError(f"data.corruption.start_id must be a token id, or None for the tokenizer's, not {start!r}.")
        spans = int(span_counts(seq_len, settings["rate"], length)[1])
        if spans > sentinels:
            raise DataError(
                f"data.corruption removes up to {spans} spans from a document in rows of {seq_len} tokens, but the "
                f"tokenizer has {sentinels} sentinels (<extra_id_0>, ...): if it is trained here, set data.tokenizer."
                f"sentinels to {spans} or more, else use one that has them. Or lower data.corruption.rate, or raise "
                "data.corruption.mean_length."
            )
    return settings
