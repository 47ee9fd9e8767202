"""Encodes a text, two texts or words for labelling, and finds the tokens at which labels are predicted."""

from typing import NamedTuple

from data.batch import DataError
from data.tokens.tokenizer import Tokenizer


class Reading(NamedTuple):
    """The ids of a text or of words, and the places of their labels."""

    ids: list[int]
    places: list[int | None]  # where labels are predicted: one place for a text, one per word; None: nowhere
    second: int | None = None  # where the second text begins; None: there is one text
    lost: int = 0  # words without a token of their own
    whole: bool = True  # nothing was cut off


class Reader:
    """Encodes texts and words for a model that labels them.

    Args:
      tokenizer: encodes the text.
      read: where the label of a text is predicted, 'first' or 'last'.
      length: the most ids of a text; the end of a longer one is cut.

    Raises:
      DataError: the special tokens alone exceed `length`.
    """

    def __init__(self, tokenizer: Tokenizer, read: str, length: int):
        special = tokenizer.special
        self._tokenizer, self._first, self._length = tokenizer, read == "first", length
        self._begin = [] if special.begin is None else [special.begin]
        self._between = tokenizer.between()
        self._end = [tokenizer.eot_id] if self._first else []
        if self._room() < 1:
            raise DataError(f"Rows of {length} tokens have no room for a text beside the special tokens.")

    def text(self, text: str, pair: str | None = None) -> Reading:
        """Returns the reading of a text, and of a second text if `pair` is given.

        Raises:
          ValueError: there is no token, or no room for two texts.
        """
        first, other = self._tokenizer.encode(text), [] if pair is None else self._tokenizer.encode(pair)
        between = [] if pair is None else self._between
        room = self._room() - len(between)
        if room < 1:
            raise ValueError(f"rows of {self._length} tokens have no room for two texts beside the special tokens")
        of_first, of_other = longest_first(len(first), len(other), room)
        before = [*self._begin, *first[:of_first], *between]
        ids = [*before, *other[:of_other], *self._end]
        if not ids:
            raise ValueError("the text has no tokens")
        place, whole = 0 if self._first else len(ids) - 1, of_first + of_other == len(first) + len(other)
        return Reading(ids, [place], None if pair is None else len(before), whole=whole)

    def words(self, words: list[str]) -> Reading:
        """Returns the reading of words: each has its place at its first token, if no other word shares that token."""
        ids, places = self._tokenizer.encode_words(words)
        alone = [place is not None and places.count(place) == 1 for place in places]
        room, first = self._room(), len(self._begin)
        asked = [
            first + place if place is not None and own and place < room else None
            for place, own in zip(places, alone, strict=True)
        ]
        return Reading([*self._begin, *ids[:room], *self._end], asked, None, alone.count(False), len(ids) <= room)

    def _room(self) -> int:
        """Returns how many ids fit beside the special ones."""
        return self._length - len(self._begin) - len(self._end)


def longest_first(first: int, other: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of two texts are kept: the longer one is cut first, then both.

    This is 'longest_first' of the tokenizers library.

    Args:
      first, other: their lengths, in tokens.
      room: the most tokens of both together.
    """
    shorter = min(first, other, room // 2)
    longer = min(max(first, other), room - shorter)
    return (shorter, longer) if first <= other else (longer, shorter)
