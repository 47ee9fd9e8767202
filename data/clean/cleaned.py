"""A source's documents, read once: through the steps of cleaning, into splits, and onto disk, for the builder.

The builder of TFDS writes one split after the other, and a source gives all of them at once. So the documents wait in a
file a split: reading and cleaning are done once however many splits there are, nothing is held in memory, and for that
the text is on disk twice until a split is written.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.batch import DataError
from data.clean.splits import SPLITS, assign
from data.clean.steps import EMPTY, STEPS, Account, Step, run
from data.read.documents import BadLines, Source


@dataclass
class SplitFacts:
    documents: int = 0
    bytes: int = 0  # of UTF-8
    sha256: str = ""  # over names and texts, in the order in which the source yields them


class Waiting:
    """The documents of one split in a file, which is gone once they are read."""

    def __init__(self, path: Path):
        self.facts = SplitFacts()
        self._path, self._stream, self._content = path, path.open("wb"), hashlib.sha256()

    def add(self, name: str, text: str) -> None:
        key, encoded = name.encode(), text.encode()
        record = b"%d %d\n" % (len(key), len(encoded)) + key + encoded
        self._stream.write(record)
        self._content.update(record)
        self.facts.documents += 1
        self.facts.bytes += len(encoded)

    def close(self) -> None:
        self._stream.close()
        self.facts.sha256 = self._content.hexdigest()

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields (name, text), both UTF-8, once."""
        with self._path.open("rb") as stream:
            self._path.unlink()  # its place on disk is given back when the stream is closed, whatever happens before
            while sizes := stream.readline():
                name, text = map(int, sizes.split())
                yield stream.read(name), stream.read(text)


@dataclass
class Cleaned:
    """What became of a source."""

    splits: dict[str, Waiting]
    bad: BadLines
    account: Account
    found: Counter[str | None]  # kept documents by the split that the source names

    def facts(self) -> dict[str, Any]:
        """What is known of it (JSON)."""
        return {
            "splits": {split: asdict(waiting.facts) for split, waiting in self.splits.items()},
            "bad_lines": {"count": self.bad.count, "first": self.bad.first},
            "test": self.found["test"],  # that were left out
            "empty": self.bad.empty + self.account.dropped[EMPTY],  # files without documents, documents without text
            "account": self.account.facts(),
        }


def clean(
    source: Source,
    folder: Path,
    *,
    validation: float,
    rule: str,
    max_bad_lines: int,
    records: bool = False,
    steps: Sequence[Step] = STEPS,
) -> Cleaned:
    """Reads the source and leaves its documents in `folder`, split.

    Args:
      records: the documents are records of examples, which are never parted.

    Raises:
      DataError: a split would have no document, or too much can't be read.
    """
    bad, account, found = BadLines(max_bad_lines), Account(), Counter()
    waiting = {split: Waiting(folder / split) for split in SPLITS}
    named = False  # documents say which split they belong to: all of a source do, or none
    try:
        for document in run(source.documents(bad), steps, account):
            found[document.split] += 1
            named = document.split is not None
            for split, text in assign(document, validation, rule):
                if split in waiting:
                    waiting[split].add(document.name, text)
    finally:
        for one in waiting.values():
            one.close()
    splits = {split: one for split, one in waiting.items() if split == "train" or validation > 0 or named}
    cleaned = Cleaned(splits, bad, account, found)
    for split, one in splits.items():
        if not one.facts.documents:
            raise DataError(_empty(source.name, split, cleaned, named, validation, rule, records))
    return cleaned


def _empty(name: str, split: str, cleaned: Cleaned, named: bool, validation: float, rule: str, records: bool) -> str:
    """What to say and to do where a split has no document."""
    bad, found = cleaned.bad, cleaned.found
    if not found:
        lines = [*bad.first, *(f"{count:,} documents: {reason}" for reason, count in cleaned.account.others().items())]
        skipped = "\n  ".join(["; what was skipped:", *lines]) if lines else ""
        return f"The data source {name} is empty: there is no document with text in it{skipped}"
    if named:
        counts = ", ".join(f"{count:,} {named}" for named, count in found.items())
        advice = (
            f"Name some of them {split}, or leave config.data.labels.split empty, so that config.data.validation "
            "divides them."
            if records
            else "Mend the dataset, or take its documents as files, which config.data.validation divides."
        )
        return (
            f"The data source {name} says itself which split each document is for, and of none it says {split}: "
            f"there are {counts}. {advice}"
        )
    what = "records" if records else "documents"
    return (
        f"The data source {name} has too few {what}: none falls into {split} with config.data.validation = "
        f"{validation}, of {found.total()} in all. {_more(split, rule, records, found.total())}"
    )


def _more(split: str, rule: str, records: bool, total: int) -> str:
    """What gives a split its first document."""
    change = "Raise" if split == "validation" else "Lower"
    if rule == "tail":
        return "All of its texts are too short to be cut in two: add longer ones, or hold out less of them."
    if not records:
        return f"{change} that fraction, or set config.data.split = 'tail', which holds out the end of each text."
    if total == 1:
        return "Add records, or set it to 0, which holds nothing out, and config.eval_every to 0."
    return f"{change} that fraction, or add records."
