"""Augmentation of examples: words that a model reads are left out, swapped or hidden, anew each time they are read.

    delete   each word goes with this probability; one of a text always stays (EDA's random deletion, arXiv:1901.11196)
    swap     this share of a text's words, at least one, each change places with another one (EDA's random swap; there
             a word may move several times, here once)
    mask     stretches of three words on average, of this share of all words, become mask tokens

Only content is touched (what a user or a source says, and words to be labelled), and of it no word at which something
is asked. So labels, answers, special tokens and what a template writes stay as they are, and held-out examples are not
augmented at all. All three are done to a text, in this order. Left out: EDA's synonyms, which need a thesaurus.

Random numbers of a row follow from the seed and its place in the stream, as in data/rows/draws.py, so another epoch
has others.

B rows, T tokens a row, W = B T words at most.
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
_MEAN_LENGTH = 3.0  # words of a masked stretch
_STREAM = 1 << 62  # added to the seed, so that corruption of text draws other numbers


class Augmentation:
    """(batch, which tokens are content, places [B], seed) -> Batch. The content [B, T] is of the encoder's tokens where
    there is one: it reads what is asked. Content that stands together is a text: words change places in it."""

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, float]):
        self.description = repr(settings)  # tells one stream of batches from another
        self._rates, self._mask_id = settings, tokenizer.mask_id
        # The last entry is for ids behind the vocabulary, those of prompt tuning.
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
        edges = np.ones(content.shape, bool)  # of texts: what a template writes is none with what stands beside it
        edges[:, 1:] = (content[:, 1:] != content[:, :-1]) | (segments[:, 1:] != segments[:, :-1])
        begins = (segments > 0) & (edges | ~continues)
        texts = np.cumsum(edges).reshape(edges.shape)
        numbers = np.split(random_numbers(seed + _STREAM, places, 3 * free.shape[1]), 3, axis=1)
        changed = self._changed({name: batch[name] for name in own}, side, free, texts, begins, continues, numbers)
        return batch | changed | {side + "positions": positions(changed[side + "segment_ids"])}

    def _changed(self, arrays: Batch, side: str, free, texts, begins, continues, numbers: list[np.ndarray]) -> Batch:
        """`texts`: numbers of them, over the batch; `begins`: where words begin."""
        tokens_name, real = side + "tokens", arrays[side + "segment_ids"] > 0
        count, width = real.shape
        # Words are numbered over the whole batch: row * T + their number in the row.
        word = np.maximum(np.cumsum(begins, axis=1) - 1, 0) + np.arange(count)[:, None] * width
        flat = lambda condition: np.bincount(word[condition], minlength=count * width) > 0
        free_W = flat(free) & ~flat(real & ~free)
        text_W = np.zeros(count * width, np.int64)  # which text of the batch a word is of
        text_W[word[real]] = texts[real]
        deleted_W = _deleted(numbers[0].reshape(-1), free_W, text_W, self._rates["delete"])
        movable_W = free_W & ~deleted_W & ~flat(begins & continues)  # the rest needs what stands before it
        place_W = _swapped(numbers[1].reshape(-1), movable_W, text_W, self._rates["swap"])
        gone = ~real | deleted_W[word]
        place = np.where(gone, count * width, place_W[word])
        order = np.argsort(place, axis=1, kind="stable")
        moved = lambda a: np.take_along_axis(a, order, axis=1)
        gone, place, free = moved(gone), moved(place), moved(free & free_W[word])
        changed = {name: np.where(gone, a.dtype.type(0), moved(a)) for name, a in arrays.items()}
        if self._rates["mask"]:
            hidden = _hidden(numbers[2], free & ~gone, place, self._rates["mask"])
            changed[tokens_name] = np.where(hidden, np.int32(self._mask_id), changed[tokens_name])
        return changed


def _deleted(numbers_W: np.ndarray, free_W: np.ndarray, text_W: np.ndarray, rate: float) -> np.ndarray:
    """Which words go, bool [W]: of a text whose every free word would, the one with the largest number stays."""
    deleted_W = free_W & (numbers_W * 2.0**-64 < rate)
    words = np.flatnonzero(free_W)
    last = words[np.lexsort((numbers_W[words], text_W[words]))]
    last = last[np.diff(text_W[last], append=-1) != 0]  # the largest of each text
    deleted_W[last] = False
    return deleted_W


def _swapped(numbers_W: np.ndarray, movable_W: np.ndarray, text_W: np.ndarray, rate: float) -> np.ndarray:
    """The place that each word gets, int [W]: words of a text are drawn in pairs, which change places."""
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
    """Which tokens are masked, bool [B, T]. Stretches are drawn over the free words of a row as one sequence."""
    begins = free.copy()
    begins[:, 1:] &= place[:, 1:] != place[:, :-1]
    noise = span_noise(numbers, begins.sum(1), rate, _MEAN_LENGTH)
    return free & np.take_along_axis(noise, np.maximum(np.cumsum(begins, axis=1) - 1, 0), axis=1)


def check(given: Mapping[str, Any], mask: bool) -> dict[str, float]:
    """The rates with their defaults; DataError where a field is unknown or out of range, or words are to be hidden
    and there is no `mask` token."""
    rates = merged(given, FIELDS, "data.augment")
    for name, rate in rates.items():
        if not (isinstance(rate, int | float) and 0 <= rate < 1):
            raise DataError(f"data.augment.{name} must be a fraction from 0 up to 1, not {rate!r}.")
    if rates["mask"] and not mask:
        raise DataError(
            "data.augment.mask hides words, but the tokenizer has no mask token ([MASK], <mask> or <|mask|>): set "
            "data.augment.mask to 0; or, if the tokenizer is trained here, set data.tokenizer.mask to True, else take "
            "a tokenizer.json that has one."
        )
    return rates


def make(given: Mapping[str, Any], tokenizer: Tokenizer) -> Augmentation | None:
    """What a config's data.augment describes, None where all rates are 0; DataError as `check`'s."""
    rates = check(given, tokenizer.mask_id is not None)
    return Augmentation(tokenizer, rates) if any(rates.values()) else None
