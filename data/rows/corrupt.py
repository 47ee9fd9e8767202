"""Corruption of packed rows: what a model sees is damaged, and it learns to put back what was there.

    masked   tokens are hidden in place, for encoders (data/rows/masked.py)
    spans    stretches of tokens are taken out, for encoder-decoders (data/rows/spans.py)

A row of the next epoch has another place in the stream, so its mask is another one (RoBERTa's dynamic masking,
arXiv:1907.11692, section 4.1); held-out rows are masked alike each time, with `VALIDATION_SEED`.

Left out: BERT's next-sentence prediction and fixed masks, which RoBERTa found no better, and its [SEP] behind a text
(packed rows hold only what begins one); T5's longer inputs that fill the encoder's row after corruption (rows are
packed before, so about a tenth of the encoder's row stays empty).
"""

from collections.abc import Mapping
from typing import Any

from data.batch import DataError
from data.rows.masked import Masked
from data.rows.spans import Spans, span_counts
from data.settings import merged
from data.tokens.tokenizer import Tokenizer

FIELDS = {
    "none": {},
    # Of all tokens, `rate` are predicted; of these, `mask` become the mask token, `random` another one, the rest stay.
    "masked": {"rate": 0.15, "mask": 0.8, "random": 0.1, "whole_words": False},
    # `start_id` is the decoder's first input; None: that of a published tokenizer (T5's 0), else the end of a document.
    "spans": {"rate": 0.15, "mean_length": 3.0, "start_id": None},
}
VALIDATION_SEED = 0

Corruption = Masked | Spans


def make(given: Mapping[str, Any], tokenizer: Tokenizer, seq_len: int) -> Corruption | None:
    """The corruption that a config's data.corruption describes, None for kind 'none'; DataError as `check`'s."""
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
    """The settings with their defaults, for rows of `seq_len`.

    DataError where a field is unknown or out of range, or the tokenizer lacks the special tokens: `mask` says whether
    it has a mask token, `sentinels` how many of these.
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
                "data.corruption.mask and data.corruption.random are shares of a whole: at most 1 together."
            )
        if not isinstance(settings["whole_words"], bool):
            raise DataError(f"data.corruption.whole_words must be True or False, not {settings['whole_words']!r}.")
        if not mask:
            raise DataError(
                "data.corruption.kind is 'masked', but the tokenizer has no mask token ([MASK], <mask> or <|mask|>): "
                "if it is trained here, set data.tokenizer.mask to True; else take a tokenizer.json that has one."
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
                f"data.corruption takes up to {spans} spans out of a document in rows of {seq_len} tokens, but the "
                f"tokenizer has {sentinels} sentinels (<extra_id_0>, ...): if it is trained here, set data.tokenizer."
                f"sentinels to {spans} or more, else take one that has them; or a smaller rate or a larger mean_length."
            )
    return settings
