"""TFDS builder for plain text: any `Source` becomes a dataset {'text', 'name'} with splits train and validation.

Written as array_record, for which TFDS needs no TensorFlow; read it back with `tfds.builder_from_directory`. TFDS
shuffles the documents by a hash of their names, so an example's place says nothing about where it came from.

Which documents are held out depends on names alone ('document'), so that it is the same on every machine and a document
added later moves no other; or each document's last characters are ('tail'), for a corpus that is one long text. A
source may also say itself which split each document belongs to; what it calls test is then written to neither. Left
out: Beam pipelines, for corpora that one machine can't read through.
"""

import contextlib
import errno
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorflow_datasets as tfds

from data.batch import DataError
from data.read.sources import BadLines, Document, Source

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


@dataclass
class SplitFacts:
    documents: int = 0
    bytes: int = 0  # of UTF-8
    sha256: str = ""  # over names and texts, in the order in which the source yields them


class Text(tfds.core.GeneratorBasedBuilder):
    """Text of a `Source`, split into train and validation."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, source: Source, validation: float, rule: str, max_bad_lines: int, records: bool, data_dir: Path
    ):
        self._source = source
        self._records = records
        self._validation = validation
        self._rule = rule
        self._max_bad_lines = max_bad_lines
        self._named = _names_splits(source, max_bad_lines)
        self.facts = {split: SplitFacts() for split in SPLITS if split == "train" or validation > 0 or self._named}
        self.bad, self.found = BadLines(max_bad_lines), Counter()
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "name": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.facts}

    def _generate_examples(self, wanted: str):
        facts = self.facts[wanted]
        # Each split reads the whole source, so that nothing has to be held in memory; what is skipped is counted once.
        bad, found = BadLines(self._max_bad_lines), Counter()
        self.bad, self.found = bad, found
        content = hashlib.sha256()
        for document in self._source.documents(bad):
            found[document.split] += 1
            for split, text in assign(document, self._validation, self._rule):
                if split != wanted:
                    continue
                name, encoded = document.name.encode(), text.encode()
                content.update(b"%d %d\n" % (len(name), len(encoded)) + name + encoded)
                facts.documents += 1
                facts.bytes += len(encoded)
                yield document.name, {"text": encoded, "name": name}
        facts.sha256 = content.hexdigest()
        if not facts.documents:
            raise DataError(self._empty(wanted))

    def _empty(self, split: str) -> str:
        name = self._source.name
        if not self.found:
            skipped = "\n  ".join(["; what was skipped:", *self.bad.first]) if self.bad.count else ""
            return f"The data source {name} is empty: there is no document with text in it{skipped}"
        if self._named:
            counts = ", ".join(f"{count:,} {named}" for named, count in self.found.items())
            advice = (
                f"Name some of them {split}, or leave config.data.labels.split empty, so that config.data.validation "
                "divides them."
                if self._records
                else "Mend the dataset, or take its documents as files, which config.data.validation divides."
            )
            return (
                f"The data source {name} says itself which split each document is for, and of none it says {split}: "
                f"there are {counts}. {advice}"
            )
        what = "records" if self._records else "documents"
        return (
            f"The data source {name} has too few {what}: none falls into {split} with config.data.validation = "
            f"{self._validation}, of {self.found.total()} in all. {self._more(split)}"
        )

    def _more(self, split: str) -> str:
        """What gives a split its first document."""
        change = "Raise" if split == "validation" else "Lower"
        if self._rule == "tail":
            return "All of its texts are too short to be cut in two: add longer ones, or hold out less of them."
        if not self._records:
            return f"{change} that fraction, or set config.data.split = 'tail', which holds out the end of each text."
        if sum(self.found.values()) == 1:
            return "Add records, or set it to 0, which holds nothing out, and config.eval_every to 0."
        return f"{change} that fraction, or add records."


def _names_splits(source: Source, max_bad_lines: int) -> bool:
    """Whether documents say which split they belong to: all of a source do, or none."""
    with contextlib.closing(source.documents(BadLines(max_bad_lines))) as documents:
        first = next(documents, None)
    return first is not None and first.split is not None


def build(
    source: Source, directory: Path, *, validation: float, rule: str, max_bad_lines: int, records: bool = False
) -> dict:
    """Writes the dataset into `directory` and returns what is known about it (JSON).

    Args:
      records: the documents are records of examples, which are never parted.
    """
    builder = Text(
        source=source,
        validation=validation,
        rule=rule,
        max_bad_lines=max_bad_lines,
        records=records,
        data_dir=directory / "tfds",
    )
    # TFDS prints about downloading, and there is none here.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    tfds.enable_progress_bar()
    for split, facts in builder.facts.items():
        found = builder.info.splits[split].num_examples
        if found != facts.documents:
            raise OSError(
                errno.ENOSPC, f"{found} of {facts.documents} {split} documents written", str(builder.data_dir)
            )
    return {
        "dataset": str(Path(builder.data_dir).relative_to(directory)),
        "splits": {split: asdict(facts) for split, facts in builder.facts.items()},
        "bad_lines": {"count": builder.bad.count, "first": builder.bad.first},
        "test": builder.found["test"],  # that were left out
        "empty": builder.bad.empty,  # documents without text, left out too
    }


def read(dataset: Path, split: str) -> Iterator[str]:
    """Yields the texts of a split that `build` wrote."""
    return (text for _, text in documents(dataset, split))


def documents(dataset: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of a split that `build` wrote.

    Raises:
      DataError: its files are no longer what was written.
    """
    builder = tfds.builder_from_directory(dataset)
    try:
        examples = builder.as_data_source(split=split)
        if (found := len(examples)) != (written := builder.info.splits[split].num_examples):
            raise RuntimeError(f"{found:,} of {written:,} documents are found")
        for i in range(found):
            example = examples[i]
            yield example["name"].decode(), example["text"].decode()
    except (RuntimeError, FileNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"The {split} split in {dataset} is damaged: {reason}. Move {dataset.parents[2]} away and run again: it is "
            "made anew."
        ) from error
