"""Defines documents and sources of them, and counts the lines and files that can't be read."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from data.batch import DataError


class Document(NamedTuple):
    name: str  # the same on every machine, because a hash of it decides between train and validation
    text: str
    split: str | None = None  # "train", "validation" or "test" if the source names the splits of all its documents


@dataclass
class BadLines:
    """Counts skipped lines and files, and keeps the first few; more than `limit` are an error."""

    limit: int
    count: int = 0
    empty: int = 0  # files without documents, which do not count against the limit
    first: list[str] = field(default_factory=list)

    def add(self, where: str, why: str) -> None:
        """Records that the line or file `where` was skipped, and why.

        Raises:
          DataError: more than `limit` were skipped.
        """
        self.count += 1
        if len(self.first) < 5:
            self.first.append(f"{where}: {why}")
        if self.count > self.limit:
            raise DataError(
                f"More than config.data.max_bad_lines = {self.limit} lines or files can't be read. Fix or remove them, "
                "or raise config.data.max_bad_lines. The first are:\n  " + "\n  ".join(self.first)
            )


class Source(Protocol):
    """A source of documents."""

    name: str

    @property
    def notes(self) -> Sequence[str]:
        """A line for each reason why files in its place are not read."""

    def fingerprint(self) -> list:
        """Returns JSON that changes when the source's content may have changed; it is cheap."""

    def fetch(self) -> None:
        """Downloads the source if it isn't on this machine yet."""

    def documents(self, bad: BadLines) -> Iterator[Document]:
        """Yields every document, in a fixed order."""


def parsed_line(line: bytes) -> dict[str, Any]:
    """Returns the record on a line of a `.jsonl` file.

    Raises:
      ValueError, RecursionError: the line is not a record; the message says why.
    """
    try:
        record = json.loads(line.decode())  # given bytes, json would guess the encoding
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"it must be a JSON object, not {type(record).__name__}")
    return record
