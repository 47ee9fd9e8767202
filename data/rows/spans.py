"""Span corruption, for encoder-decoders (T5, arXiv:1910.10683, section 3.1.4).

B rows, T tokens per row, D tokens per row of the decoder.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.batch import Batch, positions
from data.rows.draws import random_numbers, smallest
from data.tokens.tokenizer import Tokenizer


class Spans:
    """Corrupts rows: (rows [B, 3, T], places [B], seed) -> Batch with decoder arrays [B, D] and encoder arrays [B, T].

    Spans are drawn over all tokens of a row except the ends of documents, with the numbers and lengths of
    `span_counts`, and are cut where a document ends. In the encoder's row a sentinel replaces each span. For each
    document with spans, the decoder predicts [sentinel 0, span 0, sentinel 1, span 1, ..., end] with weight 1. Sentinel
    numbers restart in each document. D is noise tokens + 2 spans of a full row, rounded up to a multiple of 8, which is
    enough for any row of one document. If many short documents need more, the last spans of the row stay uncorrupted.

    Args:
      tokenizer: it must have enough sentinels (`corrupt.check`).
      settings: those of `corrupt.check`.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]):
        self.description = repr(settings)
        self._rate, self._mean_length, start_id = (settings[name] for name in ("rate", "mean_length", "start_id"))
        self._sentinels = np.array(tokenizer.sentinel_ids, np.int32)
        self._end_id, self._start_id = tokenizer.eot_id, tokenizer.start_id if start_id is None else start_id

    def target_length(self, seq_len: int) -> int:
        """Returns D for rows of `seq_len` tokens."""
        return decoder_length(seq_len, self._rate, self._mean_length)

    def __call__(self, rows: np.ndarray, places: np.ndarray, seed: int) -> Batch:
        tokens, segments = rows[:, 1].astype(np.int32), rows[:, 2].astype(np.int32)  # documents with their ends
        text = (segments > 0) & (tokens != self._end_id)
        noise = span_noise(random_numbers(seed, places, tokens.shape[1]), text.sum(1), self._rate, self._mean_length)
        # The noise was drawn over the row's text as one sequence; this moves it to where the text is in the row.
        noise = text & np.take_along_axis(noise, np.cumsum(text, axis=1) - text, axis=1)
        width = self.target_length(tokens.shape[1])
        begins, noise = _fitting(noise, segments, width)
        number = _number_in_segment(begins, segments)
        sentinels = self._sentinels[np.maximum(number - 1, 0)]
        encoder_tokens, encoder_segments = _to_the_left(
            ~noise & (segments > 0) | begins, tokens.shape[1], np.where(begins, sentinels, tokens), segments
        )
        # Each place of the row gives the decoder up to three tokens: a sentinel, its own token, the end.
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


def span_counts(length, rate: float, mean_length: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns T5's numbers of noise tokens and of spans in `length` tokens, ints of any shape.

    At least one token is noise, and at least one before each span is not. Fewer than 2 tokens have no noise.
    """
    length = np.asarray(length)
    noise = np.clip(np.rint(length * rate).astype(np.int64), 1, np.maximum(length - 1, 1))
    spans = np.maximum(np.rint(np.minimum(noise, length - noise) / mean_length).astype(np.int64), 1)
    return np.where(length > 1, noise, 0), np.where(length > 1, spans, 0)


def decoder_length(seq_len: int, rate: float, mean_length: float) -> int:
    """Returns D, the number of tokens per row of the decoder."""
    noise, spans = span_counts(seq_len, rate, mean_length)
    return -(-int(noise + 2 * spans) // 8) * 8


def span_noise(numbers: np.ndarray, length: np.ndarray, rate: float, mean_length: float) -> np.ndarray:
    """Returns T5's random_spans_noise_mask over the first length[b] columns of each row, bool [B, T].

    Text and noise are each cut into `spans` pieces, with every way to cut them equally likely, and the pieces
    alternate, text first.

    Args:
      numbers: random numbers, uint64 [B, T].
      length: tokens of each row, int [B].
      rate: share of noise.
      mean_length: mean length of a span, in tokens.
    """
    width = numbers.shape[1]
    noise, spans = span_counts(length, rate, mean_length)
    most = int(span_counts(width, rate, mean_length)[0])
    noise_ends = _random_pieces(numbers[:, :most], noise, spans)
    ends = _random_pieces(numbers[:, most:], length - noise, spans) + noise_ends
    steps = np.zeros((len(numbers), width + 1), np.int8)  # +1 where a span begins, -1 after its end
    row = np.broadcast_to(np.arange(len(numbers))[:, None], ends[:, 1:].shape)
    real = np.arange(ends.shape[1] - 1) < spans[:, None]
    lengths = np.diff(noise_ends, axis=1)
    steps[row[real], (ends[:, 1:] - lengths)[real]] = 1
    steps[row[real], ends[:, 1:][real]] = -1
    return np.cumsum(steps[:, :-1], axis=1) > 0


def _random_pieces(numbers: np.ndarray, items: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Cuts items[b] into pieces[b] of at least one item; returns 0 and the ends of pieces, [B, 1 + max(pieces)]."""
    most = max(int(pieces.max(initial=0)), 1)
    column = np.arange(numbers.shape[1])
    cuts = smallest(numbers, column < items[:, None] - 1)[:, : most - 1] + 1
    cuts = np.where(np.arange(most - 1) < pieces[:, None] - 1, cuts, items[:, None])
    whole = np.broadcast_to(items[:, None], (len(items), 1))
    return np.concatenate([np.zeros_like(whole), np.sort(cuts, axis=1), whole], axis=1)


def _fitting(noise: np.ndarray, segments: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where spans begin and the noise, both bool [B, T], of the first spans that fit into `width` tokens."""
    begins = noise.copy()
    begins[:, 1:] &= ~(noise[:, :-1] & (segments[:, :-1] == segments[:, 1:]))
    first = begins & (_number_in_segment(begins, segments) == 1)  # needs room for the document's end token too
    too_many = noise & (np.cumsum(noise.astype(np.int64) + begins + first, axis=1) > width)
    span = np.cumsum(begins, axis=1)
    kept = span < np.where(too_many, span, noise.shape[1] + 1).min(axis=1, keepdims=True)
    return begins & kept, noise & kept


def _number_in_segment(begins: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Returns how many spans of its segment begin up to each place, int [B, T]."""
    total = np.cumsum(begins, axis=1)
    before = np.where(positions(segments) == 0, total - begins, 0)
    return total - np.maximum.accumulate(before, axis=1)


def _to_the_left(kept: np.ndarray, width: int, *values: np.ndarray) -> list[np.ndarray]:
    """Returns each of `values` with only its `kept` entries, moved to the left of rows of `width`, and 0 after them."""
    row, place = np.nonzero(kept)[0], (np.cumsum(kept, axis=1) - 1)[kept]
    moved = [np.zeros((len(kept), width), np.int32) for _ in values]
    for to, value in zip(moved, values, strict=True):
        to[row, place] = value[kept]
    return moved
