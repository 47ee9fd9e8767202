"""Copies of held-out documents among those to train on, which make held-out figures too good.

Two documents are copies where they are the same but for white space; a record is compared as a whole. Held-out
documents of all sources are compared with training documents of all sources. Of each held-out document 8 bytes are
kept in memory, a hash: among 10 million of them and a billion others, one is taken for a copy by chance in one of
2,000 corpora. Left out: near copies, and a document that is a part of another.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

CHOICES = ("keep", "drop")  # they are counted in either case


class Count(NamedTuple):
    documents: int = 0
    bytes: int = 0  # UTF-8


class HeldOut:
    """The held-out documents of a corpus; `texts()` yields them, and is called when they are first needed."""

    def __init__(self, texts: Callable[[], Iterable[str]]):
        self._texts = texts

    @functools.cached_property
    def _hashes(self) -> np.ndarray:
        return np.unique(np.fromiter(map(_hash, self._texts()), np.uint64))

    def has(self, text: str) -> bool:
        """Whether a copy of `text` is held out."""
        if not len(self._hashes):
            return False
        found = np.uint64(_hash(text))
        place = np.searchsorted(self._hashes, found)
        return place < len(self._hashes) and self._hashes[place] == found

    def count(self, texts: Iterable[str]) -> Count:
        """How many of `texts` are copies."""
        if not len(self._hashes):
            return Count()
        sizes = [len(text.encode()) for text in texts if self.has(text)]
        return Count(len(sizes), sum(sizes))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")
