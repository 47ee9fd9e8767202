"""What was prepared: all that training and evaluation know of their data. It is made by data/prepare.py."""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import stage
from data.batch import TEXT, TOKEN_TYPES, Channel, DataError, example_channels, united
from data.builders import text as corpora
from data.examples import kinds
from data.tokens import tokenizer as tokenizers


@dataclass(frozen=True)
class PreparedSource:
    name: str
    spec: str
    weight: float  # share of the training rows; 0: only evaluated
    content_hash: str  # over names and texts of both splits
    bad_lines: int  # documents that were skipped because they could not be read
    corpus: Path  # a TFDS dataset
    train: Path  # folders of packed rows
    validation: Path
    train_documents: int
    train_bytes: int  # UTF-8
    train_tokens: int  # targets of text: the end of each document is one; of examples all that a model reads
    train_rows: int
    validation_documents: int
    validation_bytes: int
    validation_tokens: int
    validation_rows: int
    train_copies: int | None = None  # copies of held-out documents, kept or left out; None: they were not counted then
    validation_altered: int | None = None  # documents that the tokenizer loses something of; None: not counted then
    kind: str = kinds.TEXT
    channels: tuple[Channel, ...] = TEXT  # of its rows
    encoding: str = ""  # a hash of what examples depend on beside records and tokenizer
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the kind keeps with its rows


@dataclass(frozen=True)
class Prepared:
    """What training reads. `load(directory)` opens it again."""

    directory: Path
    tokenizer_path: Path
    vocab_size: int
    seq_len: int
    content_hash: str
    sources: tuple[PreparedSource, ...]

    @functools.cached_property
    def channels(self) -> tuple[Channel, ...]:
        """Those of batches, in which rows of all sources stand."""
        return united({source.spec: source.channels for source in self.sources})

    @property
    def labels(self) -> Mapping[str, Any] | None:
        """What is known of the labels of examples (data/examples/labels.py), None where there are none."""
        return next((source.facts for source in self.sources if source.kind == "labels"), None)

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out text: what bits per byte are counted against."""
        return sum(source.validation_bytes for source in self._texts())

    def validation_texts(self) -> Iterator[str]:
        """Yields the held-out documents as they were before the tokenizer."""
        for source in self._texts():
            if source.validation_documents:
                yield from corpora.read(source.corpus, "validation")

    def altered(self, source: PreparedSource) -> int:
        """How many held-out documents of a source of text the tokenizer does not give back as they were, so that what
        a model says of its tokens says less of the text."""
        if source.validation_altered is not None or not source.validation_documents:
            return source.validation_altered or 0
        return _altered(self.tokenizer_path, source.corpus)  # it was prepared before this was counted

    def validation_records(self, source: PreparedSource) -> Iterator[dict[str, Any]]:
        """Yields the held-out records of a source of examples, as its kind's `parse` made them
        (data/examples/kinds.py)."""
        return (json.loads(text) for text in corpora.read(source.corpus, "validation"))

    def _texts(self) -> list[PreparedSource]:
        """Sources of text that train."""
        return [source for source in self.sources if source.kind == kinds.TEXT and source.weight]


@functools.cache
def _altered(tokenizer_path: Path, corpus: Path) -> int:
    tokenizer = tokenizers.load(tokenizer_path)
    return sum(tokenizer.altered([text], [tokenizer.encode(text)]) for text in corpora.read(corpus, "validation"))


def load(directory: str | os.PathLike) -> Prepared:
    """Opens a prepared folder (`Prepared.directory`) again."""
    directory = Path(directory).absolute()
    manifest = stage.manifest(directory)
    if manifest is None:
        raise DataError(f"{directory} holds no prepared data. Prepare it: python -m launch.prepare.")
    sources = []
    for facts in manifest["sources"]:
        paths = {key: Path(os.path.normpath(directory / facts[key])) for key in ("corpus", "train", "validation")}
        sources.append(PreparedSource(**(_declared(facts) | paths)))
    hashes = [source.content_hash for source in sources]
    return Prepared(
        directory=directory,
        tokenizer_path=directory / "tokenizer.json",
        vocab_size=manifest["vocab_size"],
        seq_len=manifest["seq_len"],
        content_hash=hashes[0] if len(hashes) == 1 else stage.digest(hashes),
        sources=tuple(sources),
    )


def _declared(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a source, with its channels as such. Rows that were prepared before they were declared say
    only how many arrays they have (4, or with an encoder 6), and whether targets are numbers."""
    facts = dict(facts)
    numbers, channels = facts.pop("numbers", False), facts.pop("channels", None)
    if isinstance(channels, int):
        own = (Channel("targets", "float32"),) * numbers
        own += (TOKEN_TYPES,) * bool(facts["facts"].get("pair"))
        facts["channels"] = example_channels(own, encoder=channels == 6)
    elif channels is not None:
        facts["channels"] = tuple(Channel(*channel) for channel in channels)
    return facts
