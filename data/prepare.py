"""Preparation, once: corpus -> TFDS (array_record) -> tokenizer -> packed rows.

    DIR/corpora/NAME-HASH/     the text of one source, split (data/builders/text.py)
    DIR/tokenizers/KIND-HASH/  tokenizer.json
    DIR/rows/tLENGTH-HASH/      packed rows of all sources and a copy of tokenizer.json: all that training reads

Each folder is a stage (data/stage.py): finished ones are used again, killed ones are done anew, and other settings or
changed text go to folders of their own. On a pod every process calls `prepare`: on a shared DIR one works and the
others wait and find everything done; on disks of their own each makes the same files.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import corrupt, stage
from data import tokenizer as tokenizers
from data.batch import DataError
from data.builders import text as corpora
from data.mixture import Mixture
from data.pack import pack_texts
from data.settings import merged
from data.sources import open_source

Log = Callable[[str], None]

# A tokenizer learns little more from a longer text; each source gives its share by weight.
_TOKENIZER_CHARACTERS = 256 << 20

_FIELDS = {
    "sources": None,
    "validation": 0.05,
    "split": "document",
    "seq_len": None,
    "tokenizer": None,
    "max_bad_lines": 100,
    "corruption": None,
}
_TOKENIZER_FIELDS = {"kind": "bpe", "vocab_size": 0, "path": "", "mask": False, "sentinels": 0}


@dataclass(frozen=True)
class PreparedSource:
    name: str
    spec: str
    weight: float  # share of the training rows
    content_hash: str  # over names and texts of both splits
    bad_lines: int  # documents that were skipped because they could not be read
    corpus: Path  # a TFDS dataset
    train: Path  # folders of packed rows
    validation: Path
    train_documents: int
    train_bytes: int  # UTF-8
    train_tokens: int  # targets: the end of each document is one
    train_rows: int
    validation_documents: int
    validation_bytes: int
    validation_tokens: int
    validation_rows: int


@dataclass(frozen=True)
class Prepared:
    """What training reads. `load(directory)` opens it again."""

    directory: Path
    tokenizer_path: Path
    vocab_size: int
    seq_len: int
    content_hash: str
    sources: tuple[PreparedSource, ...]

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out text: what bits per byte are counted against."""
        return sum(source.validation_bytes for source in self.sources)

    def validation_texts(self) -> Iterator[str]:
        """Yields the held-out documents as they were before the tokenizer."""
        for source in self.sources:
            if source.validation_documents:
                yield from corpora.read(source.corpus, "validation")


def prepare(data_config: Mapping[str, Any], directory: str | os.PathLike, log: Log = print) -> Prepared:
    """Brings the data that `data_config` describes into `directory`, or finds it there.

    Fields: `sources` ((spec, weight), ...), `validation` (the fraction to hold out), `split` ('document' or 'tail'),
    `seq_len`, `tokenizer` {`kind`: 'bpe', 'byte', 'char' or 'file'; `vocab_size`; `path`; `mask`: whether it gets a
    mask token; `sentinels`: how many}, `max_bad_lines`, `corruption` (data/corrupt.py; rows on disk are whole, so it is
    only checked here, before the long work).
    """
    config = _checked(data_config)
    root = Path(directory).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with stage.lock(root, log):
            built = [_corpus(spec, config, root, log) for spec, _ in config["sources"]]
            tokenizer = _tokenizer(built, config, root, log)
            return load(_rows(built, tokenizer, config, root, log))
    except (OSError, RuntimeError) as error:
        problem = _storage_problem(error)
        if problem is None:
            raise
        raise DataError(
            f"{problem} while data was prepared in {root}: {error}. Mend that (or choose another folder) and run "
            "again; finished stages are kept."
        ) from error


def _storage_problem(error: Exception) -> str | None:
    # ArrayRecord reports what the system says in the text of a RuntimeError.
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    return None


def load(directory: str | os.PathLike) -> Prepared:
    """Opens a prepared folder (`Prepared.directory`) again."""
    directory = Path(directory).absolute()
    manifest = stage.manifest(directory)
    if manifest is None:
        raise DataError(f"{directory} holds no prepared data. Prepare it: python -m launch.prepare.")
    sources = []
    for facts in manifest["sources"]:
        paths = {key: Path(os.path.normpath(directory / facts[key])) for key in ("corpus", "train", "validation")}
        sources.append(PreparedSource(**(facts | paths)))
    hashes = [source.content_hash for source in sources]
    return Prepared(
        directory=directory,
        tokenizer_path=directory / "tokenizer.json",
        vocab_size=manifest["vocab_size"],
        seq_len=manifest["seq_len"],
        content_hash=hashes[0] if len(hashes) == 1 else stage.digest(hashes),
        sources=tuple(sources),
    )


# Stages


@dataclass(frozen=True)
class _Corpus:
    name: str
    spec: str
    content: str
    dataset: Path
    splits: dict[str, dict]
    bad_lines: int

    def texts(self, split: str) -> Iterator[str]:
        return corpora.read(self.dataset, split) if split in self.splits else iter(())


def _corpus(spec: str, config: dict, root: Path, log: Log) -> _Corpus:
    source = open_source(spec)
    settings = {"validation": config["validation"], "rule": config["split"]}
    inputs = {"spec": spec, "fingerprint": stage.digest(source.fingerprint())} | settings

    def make(folder: Path) -> dict:
        source.fetch()
        facts = corpora.build(source, folder, max_bad_lines=config["max_bad_lines"], **settings)
        bad = facts["bad_lines"]
        if bad["count"]:
            log(
                f"{spec}: skipped {bad['count']} that can't be read, the first of them:\n  " + "\n  ".join(bad["first"])
            )
        return facts

    folder, facts = stage.run(root / "corpora", source.name, inputs, make, log)
    splits = facts["splits"]
    return _Corpus(
        name=source.name,
        spec=spec,
        content=stage.digest([[split, splits[split]["sha256"]] for split in sorted(splits)]),
        dataset=folder / facts["dataset"],
        splits=splits,
        bad_lines=facts["bad_lines"]["count"],
    )


def _tokenizer(built: list[_Corpus], config: dict, root: Path, log: Log) -> tokenizers.Tokenizer:
    kind, vocab_size, path, mask, sentinels = (config["tokenizer"][key] for key in _TOKENIZER_FIELDS)
    if kind == "file":
        return tokenizers.load(path)
    specials = tokenizers.specials(mask, sentinels)
    weights = [weight for _, weight in config["sources"]]

    def texts() -> Iterator[str]:
        for corpus, weight in zip(built, weights, strict=True):
            left = _TOKENIZER_CHARACTERS * weight / sum(weights)
            for text in corpus.texts("train"):
                yield text
                left -= len(text)
                if left <= 0:
                    break

    def make(folder: Path) -> dict:
        tokenizer = tokenizers.train(texts(), kind, vocab_size, specials)
        tokenizer.save(folder / "tokenizer.json")
        if kind == "bpe" and tokenizer.vocab_size < vocab_size:
            log(f"The text is too short for {vocab_size} tokens: the vocabulary has {tokenizer.vocab_size}.")
        return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}

    contents = [[corpus.content, weight] for corpus, weight in zip(built, weights, strict=True)]
    inputs = {"kind": kind, "vocab_size": vocab_size, "corpora": contents}
    if specials:  # else the folder keeps its name
        inputs["specials"] = specials
    folder, _ = stage.run(root / "tokenizers", kind, inputs, make, log)
    return tokenizers.load(folder / "tokenizer.json")


def _rows(built: list[_Corpus], tokenizer: tokenizers.Tokenizer, config: dict, root: Path, log: Log) -> Path:
    seq_len = config["seq_len"]
    weights = [weight for _, weight in config["sources"]]
    contents = [[corpus.spec, corpus.content, weight] for corpus, weight in zip(built, weights, strict=True)]
    inputs = {"sources": contents, "tokenizer": tokenizer.fingerprint, "seq_len": seq_len}

    def make(folder: Path) -> dict:
        tokenizer.save(folder / "tokenizer.json")
        sources = []
        for i, (corpus, weight) in enumerate(zip(built, weights, strict=True)):
            facts = {
                "name": corpus.name,
                "spec": corpus.spec,
                "weight": weight,
                "content_hash": corpus.content,
                "bad_lines": corpus.bad_lines,
                "corpus": os.path.relpath(corpus.dataset, folder),
            }
            for split in corpora.SPLITS:
                counts = corpus.splits.get(split, {"documents": 0, "bytes": 0})
                path = f"{i}-{corpus.name}/{split}"
                rows, tokens, unknown = pack_texts(corpus.texts(split), tokenizer, seq_len, folder / path)
                if unknown:
                    log(f"{corpus.spec}: {unknown} of {tokens} {split} tokens are unknown to the tokenizer.")
                facts |= {split: path, f"{split}_rows": rows, f"{split}_tokens": tokens}
                facts |= {f"{split}_documents": counts["documents"], f"{split}_bytes": counts["bytes"]}
            sources.append(facts)
        return {"vocab_size": tokenizer.vocab_size, "seq_len": seq_len, "sources": sources}

    return stage.run(root / "rows", f"t{seq_len}", inputs, make, log)[0]


# Settings


def _checked(given: Mapping[str, Any]) -> dict:
    config = merged(given, _FIELDS, "data")
    config["tokenizer"] = merged(config["tokenizer"] or {}, _TOKENIZER_FIELDS, "data.tokenizer")
    try:
        config["sources"] = [(str(spec), float(weight)) for spec, weight in config["sources"]]
    except (TypeError, ValueError):
        raise DataError(
            f"data.sources must be pairs of a source and a weight, like (('stdlib', 1.0),), not {config['sources']!r}."
        ) from None
    if not config["sources"]:
        raise DataError("data.sources is empty: name at least one, like (('stdlib', 1.0),).")
    Mixture([weight for _, weight in config["sources"]])  # complains about weights now, not after the long work
    for key in ("seq_len", "max_bad_lines"):
        if not (isinstance(config[key], int) and config[key] >= (key == "seq_len")):
            raise DataError(f"data.{key} must be a positive whole number, not {config[key]!r}.")
    if not (isinstance(config["validation"], int | float) and 0 <= config["validation"] < 1):
        raise DataError(f"data.validation must be a fraction from 0 up to 1, not {config['validation']!r}.")
    if config["split"] not in corpora.RULES:
        raise DataError(f"data.split must be one of {', '.join(corpora.RULES)}, not {config['split']!r}.")
    kind, path = config["tokenizer"]["kind"], config["tokenizer"]["path"]
    if kind not in (*tokenizers.KINDS, "file"):
        raise DataError(f"data.tokenizer.kind must be one of {', '.join(tokenizers.KINDS)}, file, not {kind!r}.")
    if kind == "file" and not path:
        raise DataError("data.tokenizer.kind is 'file', so data.tokenizer.path must name a tokenizer.json.")
    mask, sentinels = config["tokenizer"]["mask"], config["tokenizer"]["sentinels"]
    if not (isinstance(mask, bool) and isinstance(sentinels, int) and sentinels >= 0):
        raise DataError(
            "data.tokenizer.mask must be True or False and data.tokenizer.sentinels a whole number from 0, not "
            f"{mask!r} and {sentinels!r}."
        )
    if kind == "file" and (mask or sentinels):
        raise DataError(
            "data.tokenizer.mask and .sentinels are for tokenizers trained here, and a file is taken as it is: set "
            "data.tokenizer.mask to False and data.tokenizer.sentinels to 0."
        )
    corruption = config["corruption"] or {}
    if kind == "file" and corruption.get("kind", "none") != "none":
        corrupt.make(corruption, tokenizers.load(path), config["seq_len"])
    else:
        corrupt.check(corruption, config["seq_len"], mask, sentinels)
    return config
