"""Reads a source once, cleans and splits its documents, and stores them on disk for the builder.

TFDS writes one split after the other, but a source yields the documents of all splits in one pass. So the documents
wait in one file per split. Reading and cleaning then happen once for any number of splits, and nothing is held in
memory. The cost is that the text is on disk twice until its split is written.
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
    """Size and hash of a split."""

    documents: int = 0
    bytes: int = 0  # UTF-8
    sha256: str = ""  # of names and texts, in the source's order


class Waiting:
    """The documents of one split in a temporary file, which is deleted when they are read.

    Attributes:
      facts: size and hash of the split, complete after `close`.
    """

    def __init__(self, path: Path):
        self.facts = SplitFacts()
        self._path, self._stream, self._content = path, path.open("wb"), hashlib.sha256()

    def add(self, name: str, text: str) -> None:
        """Appends a document."""
        key, encoded = name.encode(), text.encode()
        record = b"%d %d\n" % (len(key), len(encoded)) + key + encoded
        self._stream.write(record)
        self._content.update(record)
        self.facts.documents += 1
        self.facts.bytes += len(encoded)

    def close(self) -> None:
        """Ends writing."""
        self._stream.close()
        self.facts.sha256 = self._content.hexdigest()

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields (name, text), both UTF-8, once."""
        with self._path.open("rb") as stream:
            self._path.unlink()  # its disk space is freed when the stream closes, whatever happens until then
            while sizes := stream.readline():
                name, text = map(int, sizes.split())
                yield stream.read(name), stream.read(text)


@dataclass
class Cleaned:
    """The result of cleaning a source."""

    splits: dict[str, Waiting]
    bad: BadLines
    account: Account
    found: Counter[str | None]  # kept documents by the split that the source names; None: it names none

    def facts(self) -> dict[str, Any]:
        """Returns the counts to store with the corpus, as JSON."""
        return {
            "splits": {split: asdict(waiting.facts) for split, waiting in self.splits.items()},
            "bad_lines": {"count": self.bad.count, "first": self.bad.first},
            "test": self.found["test"],  # skipped
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
    """Reads the source and stores its documents in `folder`, cleaned and split.

    Args:
      source: where the documents come from.
      folder: a temporary folder.
      validation: the fraction to hold out.
      rule: how documents are split, one of RULES.
      max_bad_lines: how many lines and files may be skipped because they can't be read.
      records: the documents are records of examples; this only changes error messages.
      steps: what is done to each document.

    Raises:
      DataError: a split would have no document, or too many lines or files can't be read.
    """
    bad, account = BadLines(max_bad_lines), Account()
    found: Counter[str | None] = Counter()
    waiting = {split: Waiting(folder / split) for split in SPLITS}
    named = False  # the source names the split of each document; it does so for all of them or for none
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
    """Returns the error message for a split without documents."""
    bad, found = cleaned.bad, cleaned.found
    if not found:
        lines = [*bad.first, *(f"{count:,} documents: {reason}" for reason, count in cleaned.account.others().items())]
        skipped = "\n  ".join(["; skipped:", *lines]) if lines else ""
        return f"The data source {name} is empty: it has no document with text{skipped}"
    if named:
        counts = ", ".join(f"{count:,} {named}" for named, count in found.items())
        advice = (
            f"Name some of them {split}, or leave config.data.labels.split empty, so that config.data.validation "
            "divides them."
            if records
            else "Add some to the dataset, or read its documents as files, which config.data.validation divides."
        )
        return (
            f"The data source {name} names the split of each document, but {split} has none: there are {counts}. "
            f"{advice}"
        )
    what = "records" if records else "documents"
    return (
        f"The data source {name} has too few {what}: with config.data.validation = {validation}, none of "
        f"{found.total()} falls into {split}. {_more(split, rule, records, found.total())}"
    )


def _more(split: str, rule: str, records: bool, total: int) -> str:
    """Returns advice on how to get a first document into a split."""
    change = "Raise" if split == "validation" else "Lower"
    if rule == "tail":
        return "All of its texts are too short to be split in two: add longer ones, or hold out less of them."
    if not records:
        return f"{change} that fraction, or set config.data.split = 'tail', which holds out the end of each text."
    if total == 1:
        return "Add records, or set it to 0, which holds nothing out, and config.eval_every to 0."
    return f"{change} that fraction, or add records."
