"""Augmentation of examples: deletes, swaps or masks words of the input, differently in every epoch.

    delete   drops each word with this probability, but keeps at least one word of a text (EDA's random deletion,
             arXiv:1901.11196)
    swap     makes this share of a text's words, at least one, change places with another word (EDA's random swap;
             EDA may move a word several times, here it moves once)
    mask     replaces this share of all words by mask tokens, in spans of three words on average

A text goes through all three, in this order. Only content changes: text of users and sources, and words to label. Words
that carry a target stay, and so do labels, answers, special tokens and template text. Held-out examples are never
augmented. Left out: EDA's synonyms, which need a thesaurus.

A row's random numbers depend on the seed and on its place in the stream (data/rows/draws.py), so every epoch draws new
ones.

B rows, T tokens per row, W = B T words at most.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.batch import Batch, DataError, positions
from data.rows.draws import random_numbers
from data.rows.spans import span_noise
from data.settings import merged
from data.tokens.tokenizer import Tokenizer

FIELDS = {"delete": 0.0, "swap": 0.0, "mask": 0.0}
_MEAN_LENGTH = 3.0  # words per masked span
_STREAM = 1 << 62  # added to the seed, so that augmentation and corruption draw different numbers


class Augmentation:
    """Augments batches: (batch, content bool [B, T], places [B], seed) -> Batch.

    `content` says which tokens may change. In an encoder-decoder these are the encoder's tokens, because the encoder
    reads the question. A run of content tokens is one text, and words are swapped only within a text.

    Args:
      tokenizer: it must have a mask token if the rate of `mask` is above 0.
      settings: the rates of FIELDS.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, float]):
        self.description = repr(settings)  # part of the stream's hash
        self._rates, self._mask_id = settings, tokenizer.mask_id
        # The last entry is for ids beyond the vocabulary, which prompt tuning uses.
        self._continues = np.append(tokenizer.continuations(), False)
        self._special = np.append(np.zeros(tokenizer.vocab_size, bool), True)
        self._special[list(tokenizer.special_ids)] = True

    def __call__(self, batch: Batch, content: np.ndarray, places: np.ndarray, seed: int) -> Batch:
        side = "encoder_" if "encoder_tokens" in batch else ""
        own = [name for name in batch if name.startswith("encoder_") == bool(side) and name != side + "positions"]
        segments = batch[side + "segment_ids"]
        known = np.minimum(batch[side + "tokens"], len(self._special) - 1)
        continues, content = self._continues[known], content & ~self._special[known]
        free = content if side else content & (batch["weights"] == 0)
        edges = np.ones(content.shape, bool)  # a text begins here; template text and content are never one text
        edges[:, 1:] = (content[:, 1:] != content[:, :-1]) | (segments[:, 1:] != segments[:, :-1])
        begins = (segments > 0) & (edges | ~continues)
        texts = np.cumsum(edges).reshape(edges.shape)
        numbers = np.split(random_numbers(seed + _STREAM, places, 3 * free.shape[1]), 3, axis=1)
        changed = self._changed({name: batch[name] for name in own}, side, free, texts, begins, continues, numbers)
        return batch | changed | {side + "positions": positions(changed[side + "segment_ids"])}

    def _changed(self, arrays: Batch, side: str, free, texts, begins, continues, numbers: list[np.ndarray]) -> Batch:
        """Returns the augmented `arrays` of one side.

        Args:
          arrays: those of the batch that belong to the side, all [B, T].
          side: 'encoder_' or ''.
          free: which tokens may change, bool [B, T].
          texts: the number of each token's text, counted over the batch, int [B, T].
          begins: where words begin, bool [B, T].
          continues: which tokens continue a word by their form, bool [B, T].
          numbers: random numbers for each of the three changes, uint64 [B, T].
        """
        tokens_name, real = side + "tokens", arrays[side + "segment_ids"] > 0
        count, width = real.shape
        # Words are numbered over the whole batch: row * T + number in the row.
        word = np.maximum(np.cumsum(begins, axis=1) - 1, 0) + np.arange(count)[:, None] * width
        flat = lambda condition: np.bincount(word[condition], minlength=count * width) > 0
        free_W = flat(free) & ~flat(real & ~free)
        text_W = np.zeros(count * width, np.int64)  # the text that a word belongs to
        text_W[word[real]] = texts[real]
        deleted_W = _deleted(numbers[0].reshape(-1), free_W, text_W, self._rates["delete"])
        movable_W = free_W & ~deleted_W & ~flat(begins & continues)  # the rest continues the token before it
        place_W = _swapped(numbers[1].reshape(-1), movable_W, text_W, self._rates["swap"])
        gone = ~real | deleted_W[word]
        place = np.where(gone, count * width, place_W[word])
        order = np.argsort(place, axis=1, kind="stable")
        moved = lambda a: np.take_along_axis(a, order, axis=1)
        gone, place, free = moved(gone), moved(place), moved(free & free_W[word])
        changed = {name: np.where(gone, a.dtype.type(0), moved(a)) for name, a in arrays.items()}
        if self._rates["mask"]:
            assert self._mask_id is not None  # see `check`
            hidden = _hidden(numbers[2], free & ~gone, place, self._rates["mask"])
            changed[tokens_name] = np.where(hidden, np.int32(self._mask_id), changed[tokens_name])
        return changed


def _deleted(numbers_W: np.ndarray, free_W: np.ndarray, text_W: np.ndarray, rate: float) -> np.ndarray:
    """Returns which words are deleted, bool [W]; a text always keeps its free word with the largest number."""
    deleted_W = free_W & (numbers_W * 2.0**-64 < rate)
    words = np.flatnonzero(free_W)
    last = words[np.lexsort((numbers_W[words], text_W[words]))]
    last = last[np.diff(text_W[last], append=-1) != 0]  # the largest of each text
    deleted_W[last] = False
    return deleted_W


def _swapped(numbers_W: np.ndarray, movable_W: np.ndarray, text_W: np.ndarray, rate: float) -> np.ndarray:
    """Returns the new place of each word, int [W]; words of a text are drawn in pairs, and each pair is swapped."""
    place_W = np.arange(len(numbers_W))
    words = np.flatnonzero(movable_W)
    if not rate or not len(words):
        return place_W
    drawn = words[np.lexsort((numbers_W[words], text_W[words]))]
    _, first, text, sizes = np.unique(text_W[drawn], return_index=True, return_inverse=True, return_counts=True)
    rank = np.arange(len(drawn)) - first[text]
    pairs = np.minimum(np.maximum((rate * sizes).astype(int), 1), sizes // 2)[text]
    partner = np.arange(len(drawn)) + np.where(rank % 2, -1, 1)
    chosen = rank < 2 * pairs
    place_W[drawn[chosen]] = drawn[partner[chosen]]
    return place_W


def _hidden(numbers: np.ndarray, free: np.ndarray, place: np.ndarray, rate: float) -> np.ndarray:
    """Returns which tokens are masked, bool [B, T]; spans are drawn over a row's free words as one sequence."""
    begins = free.copy()
    begins[:, 1:] &= place[:, 1:] != place[:, :-1]
    noise = span_noise(numbers, begins.sum(1), rate, _MEAN_LENGTH)
    return free & np.take_along_axis(noise, np.maximum(np.cumsum(begins, axis=1) - 1, 0), axis=1)


def check(given: Mapping[str, Any], mask: bool) -> dict[str, float]:
    """Returns the rates, with defaults filled in.

    Args:
      given: the config's data.augment.
      mask: whether the tokenizer has a mask token.

    Raises:
      DataError: a field is unknown or out of range, or words are to be masked without a mask token.
    """
    rates = merged(given, FIELDS, "data.augment")
    for name, rate in rates.items():
        if not (isinstance(rate, int | float) and 0 <= rate < 1):
            raise DataError(f"data.augment.{name} must be a fraction from 0 up to 1, not {rate!r}.")
    if rates["mask"] and not mask:
        raise DataError(
            "data.augment.mask masks words, but the tokenizer has no mask token ([MASK], <mask> or <|mask|>): set "
            "data.augment.mask to 0. Or, if the tokenizer is trained here, set data.tokenizer.mask to True; else use a "
            "tokenizer.json that has one."
        )
    return rates


def make(given: Mapping[str, Any], tokenizer: Tokenizer) -> Augmentation | None:
    """Returns the augmentation that a config's data.augment describes, or None if all rates are 0.

    Raises:
      DataError: as in `check`.
    """
    rates = check(given, tokenizer.mask_id is not None)
    return Augmentation(tokenizer, rates) if any(rates.values()) else None
