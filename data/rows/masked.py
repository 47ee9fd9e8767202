"""Masked language modelling, for encoders (BERT, arXiv:1810.04805, section 3.1).

B rows, T tokens per row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.batch import Batch, from_rows
from data.rows.draws import random_numbers, smallest
from data.tokens.tokenizer import Tokenizer


class Masked:
    """Masks rows: (rows [B, 3, T], places [B], seed) -> Batch, whose targets are the row's own inputs.

    If a row has n tokens that are neither special nor padding, round(rate * n) of them have weight 1, and at least one.
    With `whole_words`, words are drawn, and all tokens of a word are chosen together (`Tokenizer.continuations`). A
    word that would exceed the number is skipped, so there may be fewer tokens, but at least one word is chosen. As in
    BERT, each chosen token is by itself masked, replaced by a random token that is not special, or kept.

    Args:
      tokenizer: it must have a mask token.
      settings: those of `corrupt.check`.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]):
        self.description = repr(settings)  # part of the stream's hash
        self._rate, self._mask, self._random = (settings[name] for name in ("rate", "mask", "random"))
        assert tokenizer.mask_id is not None  # see `corrupt.check`
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
        # The upper half of a number decides what happens to a token, the lower half which token may replace it.
        action = (numbers[:, length:] >> np.uint64(32)) * 2.0**-32
        lower = numbers[:, length:] & np.uint64(2**32 - 1)
        replacement = self._ordinary[lower * np.uint64(len(self._ordinary)) >> np.uint64(32)]
        hidden = np.where(action < self._mask + self._random, replacement, tokens)
        hidden = np.where(action < self._mask, np.int32(self._mask_id), hidden)
        corrupted = np.where(chosen, hidden, tokens)
        return batch | {"tokens": corrupted, "targets": tokens, "weights": chosen.astype(np.float32)}


def _choose_words(numbers: np.ndarray, maskable: np.ndarray, begins: np.ndarray, rate: float) -> np.ndarray:
    """Returns the tokens of randomly drawn words, bool [B, T]; they are a share `rate` of a row's maskable tokens."""
    count, width = maskable.shape
    row = np.arange(count)
    word = np.cumsum(begins, axis=1) - 1
    lengths = np.bincount((row[:, None] * width + word)[maskable], minlength=count * width).reshape(count, width)
    order = smallest(numbers, lengths > 0)
    lengths = np.take_along_axis(lengths, order, axis=1)
    total = maskable.sum(1)
    left = np.where(total > 0, np.maximum(np.rint(rate * total).astype(np.int64), 1), 0)
    chosen = np.zeros(maskable.shape, bool)  # by rank in the random order
    for rank in range(width):
        if not left.any():
            break
        chosen[:, rank] = (lengths[:, rank] > 0) & (lengths[:, rank] <= left)
        left -= lengths[:, rank] * chosen[:, rank]
    chosen[:, 0] |= (total > 0) & ~chosen.any(1)  # all words of the row are too long
    words = np.zeros_like(chosen)
    np.put_along_axis(words, order, chosen, axis=1)
    return maskable & np.take_along_axis(words, np.maximum(word, 0), axis=1)
