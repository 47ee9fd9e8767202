"""The corpus stage of preparation: turns a source into a TFDS dataset of texts, or of records as canonical JSON."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import stage
from data.batch import DataError
from data.builders import text as corpora
from data.clean.cleaned import clean
from data.clean.steps import STEPS, with_text
from data.copies import HeldOut
from data.examples import kinds
from data.read.sources import open_source


@dataclass(frozen=True)
class Corpus:
    """A source after it was read, split and written."""

    name: str
    spec: str
    kind: str  # of its examples, or kinds.TEXT
    content: str  # a hash of the names and texts of all splits
    dataset: Path
    splits: dict[str, dict]  # number of documents, bytes and hash of each split
    bad_lines: int
    without: HeldOut | None = None  # copies of these documents are left out of training

    def texts(self, split: str) -> Iterator[str]:
        """Yields the documents of a split, or its records as JSON."""
        return (text for _, text in self.documents(split))

    def records(self, split: str) -> Iterator[tuple[str, dict]]:
        """Yields (where the record was found, the record as its kind's `parse` returned it)."""
        return ((name, json.loads(text)) for name, text in self.documents(split))

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of a split, in training without copies of the documents in `without`."""
        found = corpora.documents(self.dataset, split) if split in self.splits else iter(())
        if split == "train" and self.without is not None:
            return ((name, text) for name, text in found if not self.without.has(text))
        return found

    def plain_texts(self, split: str) -> Iterator[str]:
        """Yields the texts that a tokenizer learns from."""
        if self.kind == kinds.TEXT:
            return self.texts(split)
        return (kinds.KINDS[self.kind].text(record) for _, record in self.records(split))


def read(spec: str, config: Mapping[str, Any], root: Path, log: Callable[[str], None]) -> Corpus:
    """Writes the corpus of a source below `root`, or finds it there.

    Args:
      spec: the source, as in `data.sources`.
      config: the checked `data` block.
      root: the folder of all prepared data.
      log: gets a line for each thing that a user should know, such as skipped documents.

    Raises:
      DataError: the source can't be read, is empty, or changed while it was read.
    """
    kind = kinds.kind_of(spec)
    source = open_source(spec) if kind == kinds.TEXT else kinds.open_source(spec, config[kind])
    for note in source.notes:
        log(f"{spec}: {note}")
    settings = {"validation": config["validation"], "rule": config["split"] if kind == kinds.TEXT else "document"}
    before = source.fingerprint()
    inputs = {"spec": spec, "fingerprint": stage.digest(before)} | settings
    # Without other steps there is no such field, so corpora are still found that were stored before there were steps.
    if steps := [step.__name__ for step in STEPS if step is not with_text]:
        inputs["steps"] = steps

    def make(folder: Path) -> dict:
        source.fetch()
        records = kind != kinds.TEXT
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            limits = {"max_bad_lines": config["max_bad_lines"], "records": records}
            cleaned = clean(source, Path(temporary), steps=STEPS, **limits, **settings)
            if changed := _changed(before, source):
                raise DataError(
                    f"The data source {spec} changed while it was read: {changed}. Run again when nobody writes to it."
                )
            facts = {"dataset": corpora.build(cleaned.splits, folder)} | cleaned.facts()
        bad = facts["bad_lines"]
        if bad["count"]:
            log(f"{spec}: skipped {bad['count']} lines or files that can't be read:\n  " + "\n  ".join(bad["first"]))
        if facts["empty"]:
            log(f"{spec}: {facts['empty']:,} files or documents are empty and were skipped.")
        for reason, count in cleaned.account.others().items():
            log(f"{spec}: {count:,} of {cleaned.account.read:,} documents were dropped: {reason}.")
        if facts["test"]:
            log(f"{spec}: {facts['test']:,} records of the test split were skipped.")
        return facts

    folder, facts = stage.run(root / "corpora", source.name, inputs, make, log)
    splits = facts["splits"]
    return Corpus(
        name=source.name,
        spec=spec,
        kind=kind,
        content=stage.digest([[split, splits[split]["sha256"]] for split in sorted(splits)]),
        dataset=folder / facts["dataset"],
        splits=splits,
        bad_lines=facts["bad_lines"]["count"],
    )


def _changed(before: list, source) -> str:
    """Returns which parts of the source's fingerprint changed, or '' if none did."""
    try:
        now = source.fingerprint()
    except DataError as error:
        return str(error).removesuffix(".")
    different = [one[0] if isinstance(one, list) else one for one in now if one not in before]
    return ", ".join(map(str, different[:3]))
