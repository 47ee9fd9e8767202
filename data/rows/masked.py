"""Masked language modelling: tokens are hidden in place, for encoders (BERT, arXiv:1810.04805, section 3.1).

B rows, T tokens a row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.batch import Batch, from_rows
from data.rows.draws import random_numbers, smallest
from data.tokens.tokenizer import Tokenizer


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


def _choose_words(numbers: np.ndarray, maskable: np.ndarray, begins: np.ndarray, rate: float) -> np.ndarray:
    """Draws words until their tokens are `rate` of a row's; bool [B, T], true for all tokens of the words."""
    count, width = maskable.shape
    row = np.arange(count)
    word = np.cumsum(begins, axis=1) - 1
    lengths = np.bincount((row[:, None] * width + word)[maskable], minlength=count * width).reshape(count, width)
    order = smallest(numbers, lengths > 0)
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
