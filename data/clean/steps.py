"""The steps that clean each document between its source and its corpus, and the account of what they drop.

A step receives a document and returns one, changed or not, or the reason why it is dropped. Steps see documents one by
one, whole and before they are split, in the order of the list. If a step drops a document, later steps don't see it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.read.documents import Document


class Dropped(NamedTuple):
    """The result of a step that drops its document."""

    reason: str  # a word or two, under which it is counted


EMPTY = "empty"
Step = Callable[[Document], Document | Dropped]


def with_text(document: Document) -> Document | Dropped:
    """Drops empty documents, which have nothing to train on but would count as documents."""
    return document if document.text else Dropped(EMPTY)


STEPS: tuple[Step, ...] = (with_text,)  # of every corpus


@dataclass
class Account:
    """Counts the documents that came in and what happened to them; read = kept + the sum of dropped."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def others(self) -> dict[str, int]:
        """Returns the number of dropped documents by reason, without empty ones."""
        return {reason: count for reason, count in self.dropped.items() if reason != EMPTY}

    def facts(self) -> dict[str, Any]:
        """Returns the counts as JSON, to store with the corpus."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped)}


def run(documents: Iterable[Document], steps: Sequence[Step], account: Account) -> Iterator[Document]:
    """Yields the documents that no step drops, and counts all of them in `account`."""
    for document in documents:
        account.read += 1
        if isinstance(left := _through(document, steps), Dropped):
            account.dropped[left.reason] += 1
        else:
            account.kept += 1
            yield left


def _through(document: Document, steps: Sequence[Step]) -> Document | Dropped:
    for step in steps:
        found = step(document)
        if isinstance(found, Dropped):
            return found
        document = found
    return document
