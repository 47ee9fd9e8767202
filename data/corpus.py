"""The corpus of a source, a stage of preparation: a TFDS dataset of texts, or of records as canonical JSON objects."""

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
from data.copies import HeldOut
from data.examples import kinds
from data.read.sources import open_source


@dataclass(frozen=True)
class Corpus:
    """A source that was read, split and written."""

    name: str
    spec: str
    kind: str
    content: str
    dataset: Path
    splits: dict[str, dict]
    bad_lines: int
    without: HeldOut | None = None  # documents to train on are those of which none of these is a copy

    def texts(self, split: str) -> Iterator[str]:
        return (text for _, text in self.documents(split))

    def records(self, split: str) -> Iterator[tuple[str, dict]]:
        """(where it was found, what the kind's `parse` made of it)."""
        return ((name, json.loads(text)) for name, text in self.documents(split))

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        found = corpora.documents(self.dataset, split) if split in self.splits else iter(())
        if split == "train" and self.without is not None:
            return ((name, text) for name, text in found if not self.without.has(text))
        return found

    def plain_texts(self, split: str) -> Iterator[str]:
        """What a tokenizer learns from."""
        if self.kind == kinds.TEXT:
            return self.texts(split)
        return (kinds.KINDS[self.kind].text(record) for _, record in self.records(split))


def read(spec: str, config: Mapping[str, Any], root: Path, log: Callable[[str], None]) -> Corpus:
    """Brings the source `spec` of a checked block `data` to `root`, or finds it there."""
    kind = kinds.kind_of(spec)
    source = open_source(spec) if kind == kinds.TEXT else kinds.open_source(spec, config[kind])
    for note in source.notes:
        log(f"{spec}: {note}")
    settings = {"validation": config["validation"], "rule": config["split"] if kind == kinds.TEXT else "document"}
    before = source.fingerprint()
    inputs = {"spec": spec, "fingerprint": stage.digest(before)} | settings

    def make(folder: Path) -> dict:
        source.fetch()
        records = kind != kinds.TEXT
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            limits = {"max_bad_lines": config["max_bad_lines"], "records": records}
            cleaned = clean(source, Path(temporary), **limits, **settings)
            if changed := _changed(before, source):
                raise DataError(
                    f"The data source {spec} has changed while it was read: {changed}. Run again when nobody writes to "
                    "it."
                )
            facts = {"dataset": corpora.build(cleaned.splits, folder)} | cleaned.facts()
        bad = facts["bad_lines"]
        if bad["count"]:
            log(
                f"{spec}: skipped {bad['count']} that can't be read, the first of them:\n  " + "\n  ".join(bad["first"])
            )
        if facts["empty"]:
            log(f"{spec}: {facts['empty']:,} files or documents are empty and are left out.")
        for reason, count in cleaned.account.others().items():
            log(f"{spec}: {count:,} of {cleaned.account.read:,} documents are left out: {reason}.")
        if facts["test"]:
            log(f"{spec}: {facts['test']:,} records of the split test are left out.")
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
    """Which part of a fingerprint is another by now; ''."""
    try:
        now = source.fingerprint()
    except DataError as error:
        return str(error).removesuffix(".")
    different = [one[0] if isinstance(one, list) else one for one in now if one not in before]
    return ", ".join(map(str, different[:3]))
