"""What is read: documents and records, and what of them can't be."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from data.batch import DataError


class Document(NamedTuple):
    name: str  # the same on every machine: it decides between train and validation
    text: str
    # "train", "validation" or "test" where the source itself says so, of all documents or of none
    split: str | None = None


@dataclass
class BadLines:
    """What was skipped: all counted, the first few kept; more than `limit` stops the run."""

    limit: int
    count: int = 0
    empty: int = 0  # files without documents, which do not count against the limit
    first: list[str] = field(default_factory=list)

    def add(self, where: str, why: str) -> None:
        self.count += 1
        if len(self.first) < 5:
            self.first.append(f"{where}: {why}")
        if self.count > self.limit:
            raise DataError(
                f"More than config.data.max_bad_lines = {self.limit} lines or files can't be read. Mend or remove "
                "them, or raise config.data.max_bad_lines. The first are:\n  " + "\n  ".join(self.first)
            )


class Source(Protocol):
    name: str
    notes: Sequence[str]  # what lies where it reads and is not read, a line for each reason

    def fingerprint(self) -> list:
        """Changes when the source's content may have changed; cheap, JSON."""

    def fetch(self) -> None:
        """Brings the source to this machine where it isn't yet."""

    def documents(self, bad: BadLines) -> Iterator[Document]:
        """Yields every document, in a fixed order."""


def parsed_line(line: bytes) -> dict[str, Any]:
    """The record on a line of a `.jsonl` file; a ValueError (or RecursionError) says why it is none."""
    try:
        record = json.loads(line.decode())  # of bytes, json guesses the encoding
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is expected, not {type(record).__name__}")
    return record
