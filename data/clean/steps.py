"""What is done to each document between its source and its corpus, and the account of it.

A step takes a document and gives one, changed or not, or says why it is dropped. Steps see documents one by one and
whole, before they are split, in the order of the list; a document that one drops, the next ones do not see.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.read.documents import Document


class Dropped(NamedTuple):
    reason: str  # a word or two: what it is counted under


EMPTY = "empty"
Step = Callable[[Document], Document | Dropped]


def with_text(document: Document) -> Document | Dropped:
    """Drops empty documents: nothing can be learnt of them, and they would count."""
    return document if document.text else Dropped(EMPTY)


# All that a corpus goes through. Corpora are found by their source alone: what else is done to documents must be named
# in the inputs of the stage too (data/corpus.py), so that a corpus without it is not taken for one with it.
STEPS: tuple[Step, ...] = (with_text,)


@dataclass
class Account:
    """How many documents came in, and what became of them; it closes: read = kept + all that were dropped."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def others(self) -> dict[str, int]:
        """What was dropped though it was not empty, by reason."""
        return {reason: count for reason, count in self.dropped.items() if reason != EMPTY}

    def facts(self) -> dict[str, Any]:
        """JSON, to be kept beside the corpus."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped)}


def run(documents: Iterable[Document], steps: Sequence[Step], account: Account) -> Iterator[Document]:
    """Yields the documents that no step drops, and counts all of them."""
    for document in documents:
        account.read += 1
        if isinstance(left := _through(document, steps), Dropped):
            account.dropped[left.reason] += 1
        else:
            account.kept += 1
            yield left


def _through(document: Document, steps: Sequence[Step]) -> Document | Dropped:
    for step in steps:
        document = step(document)
        if isinstance(document, Dropped):
            break
    return document
