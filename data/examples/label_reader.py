"""What a model reads of a text to be labelled, of two or of words, and where it is asked for the labels."""

from typing import NamedTuple

from data.batch import DataError
from data.tokens.tokenizer import Tokenizer


class Reading(NamedTuple):
    """What a model reads of a text or of words, and where it is asked for their labels."""

    ids: list[int]
    places: list[int | None]  # the one of a text; that of each word, None: it is not asked
    second: int | None = None  # where the second text begins
    lost: int = 0  # words without a token of their own
    whole: bool = True  # nothing was cut off


class Reader:
    """Texts, or words, as a model reads them; at most `length` ids, so that a long one loses its end."""

    def __init__(self, tokenizer: Tokenizer, read: str, length: int):
        special = tokenizer.special
        self._tokenizer, self._first, self._length = tokenizer, read == "first", length
        self._begin = [] if special.begin is None else [special.begin]
        self._between = tokenizer.between()
        self._end = [tokenizer.eot_id] if self._first else []
        if self._room() < 1:
            raise DataError(f"Rows of {length} tokens have no room for a text beside the special tokens.")

    def text(self, text: str, pair: str | None = None) -> Reading:
        """ValueError where there is nothing to ask at."""
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
        """A word is asked at its first token, and not at all where it shares it with another one or has none."""
        ids, places = self._tokenizer.encode_words(words)
        alone = [place is not None and places.count(place) == 1 for place in places]
        room, first = self._room(), len(self._begin)
        asked = [first + place if own and place < room else None for place, own in zip(places, alone, strict=True)]
        return Reading([*self._begin, *ids[:room], *self._end], asked, None, alone.count(False), len(ids) <= room)

    def _room(self) -> int:
        """Ids beside the special ones."""
        return self._length - len(self._begin) - len(self._end)


def longest_first(first: int, other: int, room: int) -> tuple[int, int]:
    """What is kept of two texts, in tokens: the longer one is cut first, both where neither leaves room for the other
    (the tokenizers library's 'longest_first')."""
    shorter = min(first, other, room // 2)
    longer = min(max(first, other), room - shorter)
    return (shorter, longer) if first <= other else (longer, shorter)
