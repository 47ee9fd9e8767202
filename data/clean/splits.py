"""Assigns documents to the splits train and validation.

    document   a hash of its name decides, so the split is the same on every machine, and a document added later moves
               no other one
    tail       the last characters of every document are held out; for a corpus that is one long text

If a source names the split of each document itself, that counts instead, and documents of the test split are skipped.
"""

import hashlib
from collections.abc import Iterator

from data.read.documents import Document

SPLITS = ("train", "validation")
RULES = ("document", "tail")


def assign(document: Document, validation: float, rule: str) -> Iterator[tuple[str, str]]:
    """Yields (split, text) for the parts of a document; `validation` is the fraction to hold out."""
    if document.split is not None:
        yield document.split, document.text
    elif rule == "tail":
        # As in nanoGPT: the first int(n * 0.9) of n characters are for training, the rest is held out.
        cut = int(len(document.text) * (1 - validation))
        for split, text in zip(SPLITS, (document.text[:cut], document.text[cut:]), strict=True):
            if text:
                yield split, text
    else:
        digest = hashlib.blake2b(document.name.encode(), digest_size=8).digest()
        yield SPLITS[int.from_bytes(digest, "big") < validation * 2**64], document.text
