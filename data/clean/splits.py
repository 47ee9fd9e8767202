"""Which split a document belongs to.

Which documents are held out depends on names alone ('document'), so that it is the same on every machine and a document
added later moves no other; or each document's last characters are ('tail'), for a corpus that is one long text. A
source may also say itself which split each document belongs to; what it calls test is then written to neither.
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
        # nanoGPT's cut: the first int(n * 0.9) characters of n train, the rest are held out.
        cut = int(len(document.text) * (1 - validation))
        for split, text in zip(SPLITS, (document.text[:cut], document.text[cut:]), strict=True):
            if text:
                yield split, text
    else:
        digest = hashlib.blake2b(document.name.encode(), digest_size=8).digest()
        yield SPLITS[int.from_bytes(digest, "big") < validation * 2**64], document.text
