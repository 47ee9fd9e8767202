"""Prepared data as training and evaluation read it; data/prepare.py writes it."""

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
from data.copies import HeldOut
from data.examples import kinds
from data.tokens import tokenizer as tokenizers


@dataclass(frozen=True)
class PreparedSource:
    """A source after preparation."""

    name: str
    spec: str
    weight: float  # share of the training rows; 0: only evaluated
    content_hash: str  # of names and texts of both splits
    bad_lines: int  # lines and files that were skipped because they could not be read
    corpus: Path  # a TFDS dataset
    train: Path  # folder of packed rows
    validation: Path  # folder of packed rows
    train_documents: int
    train_bytes: int  # UTF-8
    train_tokens: int  # for text the targets, with the end of each document; for examples all tokens that a model reads
    train_rows: int
    validation_documents: int
    validation_bytes: int
    validation_tokens: int
    validation_rows: int
    train_copies: int | None = None  # copies of held-out documents, kept or dropped; None: not counted at that time
    validation_altered: int | None = None  # documents that the tokenizer changes; None: not counted at that time
    kind: str = kinds.TEXT
    channels: tuple[Channel, ...] = TEXT  # those of its rows; (): its records are not packed into rows
    encoding: str = ""  # a hash of what examples depend on beside records and tokenizer
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the kind stores with its rows


@dataclass(frozen=True)
class Prepared:
    """All data that a run reads; `load(directory)` opens it again."""

    directory: Path
    tokenizer_path: Path
    vocab_size: int
    seq_len: int
    content_hash: str
    sources: tuple[PreparedSource, ...]
    drops_copies: bool = False  # training documents that are copies of held-out ones are left out

    @functools.cached_property
    def channels(self) -> tuple[Channel, ...]:
        """The channels of batches, which mix rows of all sources."""
        return united({source.spec: source.channels for source in self.sources})

    @property
    def labels(self) -> Mapping[str, Any] | None:
        """The facts about labels (data/examples/labels.py); None: there is no source of labels."""
        return next((source.facts for source in self.sources if source.facts), None)

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out text, the denominator of bits per byte."""
        return sum(source.validation_bytes for source in self._texts())

    def validation_texts(self) -> Iterator[str]:
        """Yields the held-out documents of text, as they were before tokenization."""
        for source in self._texts():
            if source.validation_documents:
                yield from corpora.read(source.corpus, "validation")

    def altered(self, source: PreparedSource) -> int:
        """Returns how many held-out documents of a source of text change when they are encoded and decoded.

        The loss on their tokens does not measure the whole text, so it gives no bits per byte.
        """
        if source.validation_altered is not None or not source.validation_documents:
            return source.validation_altered or 0
        return _altered(self.tokenizer_path, source.corpus)  # prepared before preparation counted them

    def records(self, source: PreparedSource, split: str) -> Iterator[dict[str, Any]]:
        """Yields the records of a split of a source, as its kind's `parse` returned them.

        If config.data.copies is 'drop', training records that are copies of held-out ones are left out.
        """
        held_out = HeldOut(self._held_out) if self.drops_copies and split == "train" else None
        for text in corpora.read(source.corpus, split) if getattr(source, f"{split}_documents") else ():
            if held_out is None or not held_out.has(text):
                yield json.loads(text)

    def _held_out(self) -> Iterator[str]:
        for source in self.sources:
            yield from corpora.read(source.corpus, "validation") if source.validation_documents else ()

    def _texts(self) -> list[PreparedSource]:
        """Returns the sources of text that are trained on."""
        return [source for source in self.sources if source.kind == kinds.TEXT and source.weight]


@functools.cache
def _altered(tokenizer_path: Path, corpus: Path) -> int:
    tokenizer = tokenizers.load(tokenizer_path)
    return sum(tokenizer.altered([text], [tokenizer.encode(text)]) for text in corpora.read(corpus, "validation"))


def load(directory: str | os.PathLike) -> Prepared:
    """Opens a prepared folder (`Prepared.directory`) again.

    Raises:
      DataError: the folder holds no prepared data.
    """
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
        drops_copies=manifest["inputs"].get("copies") == "drop",
    )


def _declared(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a source's recorded facts with its channels as `Channel`s.

    Data from before channels were declared records only the number of arrays (4, or 6 with an encoder) and whether
    targets are numbers.
    """
    facts = dict(facts)
    numbers, channels = facts.pop("numbers", False), facts.pop("channels", None)
    if isinstance(channels, int):
        own = (Channel("targets", "float32"),) * numbers
        own += (TOKEN_TYPES,) * bool(facts["facts"].get("pair"))
        facts["channels"] = example_channels(own, encoder=channels == 6)
    elif channels is not None:
        facts["channels"] = tuple(Channel(*channel) for channel in channels)
    return facts
