"""Corruption of packed rows: what a model sees is damaged, and it learns to put back what was there.

    masked   tokens are hidden in place, for encoders (BERT, arXiv:1810.04805, section 3.1)
    spans    stretches of tokens are taken out, for encoder-decoders (T5, arXiv:1910.10683, section 3.1.4)

Random numbers of a row depend on the seed and its place in the stream alone: not on the batch, the process or what was
read before. A row of the next epoch has another place, so its mask is another one (RoBERTa's dynamic masking,
arXiv:1907.11692, section 4.1); held-out rows are masked alike each time, with `VALIDATION_SEED`.

Left out: BERT's next-sentence prediction and fixed masks, which RoBERTa found no better, and its [SEP] behind a text
(packed rows hold only what begins one); T5's longer inputs that fill
the encoder's row after corruption (rows are packed before, so about a tenth of the encoder's row stays empty).

B rows, T tokens a row, D tokens a row of the decoder.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.batch import Batch, DataError, from_rows, positions
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

_LAST = np.uint64(2**64 - 1)


class Masked:
    """Masked language modelling: (rows [B, 3, T], places [B], seed) -> Batch, with the row's inputs as targets.

    Of the n tokens of a row that are neither special nor padding, round(rate * n) have weight 1, at least one where n
    is not 0. With `whole_words`, words are drawn and all their tokens hidden (`Tokenizer.continuations` says which
    those are): at most as many tokens, since a word that doesn't fit is passed over, but at least one word. Each token
    is masked, replaced (by any that isn't special) or kept on its own, as in BERT.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]):
        self.description = repr(settings)  # tells one stream of batches from another
        self._rate, self._mask, self._random = (settings[name] for name in ("rate", "mask", "random"))
        self._mask_id = tokenizer.mask_id
        self._special = np.zeros(tokenizer.vocab_size, bool)
        self._special[list(tokenizer.special_ids)] = True
        self._ordinary = np.flatnonzero(~self._special).astype(np.int32)
        self._continues = tokenizer.continuations() if settings["whole_words"] else np.zeros(tokenizer.vocab_size, bool)

    def __call__(self, rows: np.ndarray, places: np.ndarray, seed: int) -> Batch:
        batch = from_rows(rows)
        tokens, segments = batch["tokens"], batch["segment_ids"]
        length = tokens.shape[1]
        numbers = random_numbers(seed, places, 2 * length)
        maskable = (segments > 0) & ~self._special[tokens]
        begins = maskable.copy()
        follows = maskable[:, :-1] & (segments[:, :-1] == segments[:, 1:])
        begins[:, 1:] &= ~(follows & self._continues[tokens[:, 1:]])
        chosen = _choose_words(numbers[:, :length], maskable, begins, self._rate)
        # The upper half of a number decides what happens to a token, the lower half by which it may be replaced.
        action = (numbers[:, length:] >> np.uint64(32)) * 2.0**-32
        lower = numbers[:, length:] & np.uint64(2**32 - 1)
        replacement = self._ordinary[lower * np.uint64(len(self._ordinary)) >> np.uint64(32)]
        hidden = np.where(action < self._mask + self._random, replacement, tokens)
        hidden = np.where(action < self._mask, np.int32(self._mask_id), hidden)
        corrupted = np.where(chosen, hidden, tokens)
        return batch | {"tokens": corrupted, "targets": tokens, "weights": chosen.astype(np.float32)}


class Spans:
    """Span corruption: (rows [B, 3, T], places [B], seed) -> Batch of the decoder's side [B, D] and the encoder's.

    Spans are drawn over all tokens of a row but the ends of documents, as many and as long as `span_counts`
    says, and cut where a document ends. In the encoder's row (T long) a sentinel stands for each span. The decoder
    predicts, for each document with spans, [sentinel 0, span 0, sentinel 1, span 1, ..., end], with weight 1. Sentinels
    are numbered anew in each document. D is tokens + 2 spans of a full row, rounded up to a multiple of 8: enough for
    any row of one document; where many short ones need more, the last spans of the row are left in place.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]):
        self.description = repr(settings)
        self._rate, self._mean_length, start_id = (settings[name] for name in ("rate", "mean_length", "start_id"))
        self._sentinels = np.array(tokenizer.sentinel_ids, np.int32)
        self._end_id, self._start_id = tokenizer.eot_id, tokenizer.start_id if start_id is None else start_id

    def target_length(self, seq_len: int) -> int:
        return decoder_length(seq_len, self._rate, self._mean_length)

    def __call__(self, rows: np.ndarray, places: np.ndarray, seed: int) -> Batch:
        tokens, segments = rows[:, 1].astype(np.int32), rows[:, 2].astype(np.int32)  # documents with their ends
        text = (segments > 0) & (tokens != self._end_id)
        noise = span_noise(random_numbers(seed, places, tokens.shape[1]), text.sum(1), self._rate, self._mean_length)
        # The noise is drawn over the text of a row as one sequence; here it goes to where that text stands.
        noise = text & np.take_along_axis(noise, np.cumsum(text, axis=1) - text, axis=1)
        width = self.target_length(tokens.shape[1])
        begins, noise = _fitting(noise, segments, width)
        number = _number_in_segment(begins, segments)
        sentinels = self._sentinels[np.maximum(number - 1, 0)]
        encoder_tokens, encoder_segments = _to_the_left(
            ~noise & (segments > 0) | begins, tokens.shape[1], np.where(begins, sentinels, tokens), segments
        )
        # Each place of the row may give up to three tokens to the decoder: a sentinel, itself, the end.
        ends = (number > 0) & (segments > 0)
        ends[:, :-1] &= segments[:, :-1] != segments[:, 1:]
        given = np.stack([begins, noise, ends], axis=-1).reshape(len(rows), -1)
        candidates = np.stack([sentinels, tokens, np.full_like(tokens, self._end_id)], axis=-1)
        targets, target_segments = _to_the_left(
            given, width, candidates.reshape(len(rows), -1), np.repeat(segments, 3, axis=1)
        )
        offsets = positions(target_segments)
        inputs = np.zeros_like(targets)
        inputs[:, 1:] = targets[:, :-1]
        inputs = np.where(target_segments > 0, np.where(offsets == 0, np.int32(self._start_id), inputs), 0)
        return {
            "tokens": inputs,
            "targets": targets,
            "segment_ids": target_segments,
            "positions": offsets,
            "weights": (target_segments > 0).astype(np.float32),
            "encoder_tokens": encoder_tokens,
            "encoder_segment_ids": encoder_segments,
            "encoder_positions": positions(encoder_segments),
        }


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


def span_counts(length, rate: float, mean_length: float) -> tuple[np.ndarray, np.ndarray]:
    """T5's numbers of noise tokens and of spans in `length` tokens (any shape); fewer than 2 tokens have none.

    At least one token is noise, and one before each span isn't.
    """
    length = np.asarray(length)
    noise = np.clip(np.rint(length * rate).astype(np.int64), 1, np.maximum(length - 1, 1))
    spans = np.maximum(np.rint(np.minimum(noise, length - noise) / mean_length).astype(np.int64), 1)
    return np.where(length > 1, noise, 0), np.where(length > 1, spans, 0)


def decoder_length(seq_len: int, rate: float, mean_length: float) -> int:
    """The decoder's tokens a row, D."""
    noise, spans = span_counts(seq_len, rate, mean_length)
    return -(-int(noise + 2 * spans) // 8) * 8


def random_numbers(seed: int, places: np.ndarray, count: int) -> np.ndarray:
    """uint64 [B, count]: row i follows from (seed, places[i]). Raw Philox output, which no NumPy version changes."""
    generator = np.random.Philox(0)
    state = generator.state
    numbers = np.empty((len(places), count), np.uint64)
    for i, place in enumerate(places):
        state["state"]["key"] = np.array([seed % 2**64, place], np.uint64)
        generator.state = state  # six times faster than a generator a row
        numbers[i] = generator.random_raw(count)
    return numbers


def _smallest(numbers: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The columns of each row in the order of their numbers, those that are not `valid` behind."""
    return np.argsort(np.where(valid, numbers >> np.uint64(1), _LAST), axis=1)


def _choose_words(numbers: np.ndarray, maskable: np.ndarray, begins: np.ndarray, rate: float) -> np.ndarray:
    """Draws words until their tokens are `rate` of a row's; bool [B, T], true for all tokens of the words."""
    count, width = maskable.shape
    row = np.arange(count)
    word = np.cumsum(begins, axis=1) - 1
    lengths = np.bincount((row[:, None] * width + word)[maskable], minlength=count * width).reshape(count, width)
    order = _smallest(numbers, lengths > 0)
    lengths = np.take_along_axis(lengths, order, axis=1)
    total = maskable.sum(1)
    left = np.where(total > 0, np.maximum(np.rint(rate * total).astype(np.int64), 1), 0)
    chosen = np.zeros(maskable.shape, bool)  # of the ordered words
    for rank in range(width):
        if not left.any():
            break
        chosen[:, rank] = (lengths[:, rank] > 0) & (lengths[:, rank] <= left)
        left -= lengths[:, rank] * chosen[:, rank]
    chosen[:, 0] |= (total > 0) & ~chosen.any(1)  # a row of words that are all too long
    words = np.zeros_like(chosen)
    np.put_along_axis(words, order, chosen, axis=1)
    return maskable & np.take_along_axis(words, np.maximum(word, 0), axis=1)


def span_noise(numbers: np.ndarray, length: np.ndarray, rate: float, mean_length: float) -> np.ndarray:
    """T5's random_spans_noise_mask over the first length[b] columns of each row; bool [B, T].

    Text and noise are each cut into `spans` pieces, every way to do so as likely, and laid in turn, text first.
    """
    width = numbers.shape[1]
    noise, spans = span_counts(length, rate, mean_length)
    most = int(span_counts(width, rate, mean_length)[0])
    noise_ends = _random_pieces(numbers[:, :most], noise, spans)
    ends = _random_pieces(numbers[:, most:], length - noise, spans) + noise_ends
    steps = np.zeros((len(numbers), width + 1), np.int8)  # +1 where a span begins, -1 behind its end
    row = np.broadcast_to(np.arange(len(numbers))[:, None], ends[:, 1:].shape)
    real = np.arange(ends.shape[1] - 1) < spans[:, None]
    lengths = np.diff(noise_ends, axis=1)
    steps[row[real], (ends[:, 1:] - lengths)[real]] = 1
    steps[row[real], ends[:, 1:][real]] = -1
    return np.cumsum(steps[:, :-1], axis=1) > 0


def _random_pieces(numbers: np.ndarray, items: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Cuts `items` [B] into `pieces` [B] of at least one; gives 0 and then their ends, [B, 1 + max(pieces)]."""
    most = max(int(pieces.max(initial=0)), 1)
    column = np.arange(numbers.shape[1])
    cuts = _smallest(numbers, column < items[:, None] - 1)[:, : most - 1] + 1
    cuts = np.where(np.arange(most - 1) < pieces[:, None] - 1, cuts, items[:, None])
    whole = np.broadcast_to(items[:, None], (len(items), 1))
    return np.concatenate([np.zeros_like(whole), np.sort(cuts, axis=1), whole], axis=1)


def _fitting(noise: np.ndarray, segments: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where spans begin, and the noise, of the spans at the front that fit into the decoder's `width`."""
    begins = noise.copy()
    begins[:, 1:] &= ~(noise[:, :-1] & (segments[:, :-1] == segments[:, 1:]))
    first = begins & (_number_in_segment(begins, segments) == 1)  # costs the document's end, beside its sentinel
    too_many = noise & (np.cumsum(noise.astype(np.int64) + begins + first, axis=1) > width)
    span = np.cumsum(begins, axis=1)
    kept = span < np.where(too_many, span, noise.shape[1] + 1).min(axis=1, keepdims=True)
    return begins & kept, noise & kept


def _number_in_segment(begins: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """How many spans began in the segment of each place, up to there."""
    total = np.cumsum(begins, axis=1)
    before = np.where(positions(segments) == 0, total - begins, 0)
    return total - np.maximum.accumulate(before, axis=1)


def _to_the_left(kept: np.ndarray, width: int, *values: np.ndarray) -> list[np.ndarray]:
    """What is `kept` of each row of `values`, moved together to the left in rows of `width`; 0 behind."""
    row, place = np.nonzero(kept)[0], (np.cumsum(kept, axis=1) - 1)[kept]
    moved = [np.zeros((len(kept), width), np.int32) for _ in values]
    for to, value in zip(moved, values, strict=True):
        to[row, place] = value[kept]
    return moved
