"""Where text comes from: a spec string becomes an iterator over documents.

    stdlib                the Python standard library's own sources, one document a file (no download needed)
    files:GLOB            local files; a bare path, folder or glob is the same. `.txt .md .py`: one document a file;
                          `.jsonl`: one a line, from its field "text". Each may end in `.gz` or `.zst`, and be in
                          upper case. Links are followed, and each file is read once (data/read/listing.py).
    tfds:NAME[/CONFIG]    any TFDS dataset by name, or the folder of a prepared one

`files[FIELD]:` and `tfds[FIELD]:` name another field than "text". All is read as UTF-8. What can't be read (a broken
jsonl line, a file that isn't UTF-8) is skipped and kept in `BadLines` with file and line. Left out: what is done to
documents, which is data/clean/.
"""

import difflib
import json
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.batch import DataError
from data.read import compressed, fingerprints
from data.read.listing import Listing, document_name, find_files, slug

_WHOLE = (".txt", ".md", ".py")
_LINES = (".jsonl",)
_SUFFIXES = tuple(kind + packed for kind in _WHOLE + _LINES for packed in ("", *compressed.SUFFIXES))
# Left out of the standard library: third-party packages, tests (which some systems don't ship) and generated tables.
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "encodings"}


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


def open_source(spec: str) -> Source:
    """Finds what `spec` means; raises DataError where it means nothing."""
    match = re.fullmatch(r"(files|tfds)(?:\[([^\]]+)\])?:(.+)", spec, re.DOTALL)
    if spec == "stdlib":
        return _stdlib()
    if match is None and re.match(r"\w{2,}(\[.*\])?:", spec):
        raise DataError(f"Unknown data source {spec!r}: use stdlib, files:GLOB, tfds:NAME, a path, or one of examples.")
    kind, name, rest = match.groups() if match else ("files", None, spec)
    if kind == "tfds":
        return TfdsSource(rest, name)
    return _files(rest, name or "text")


def _stdlib() -> "FileSource":
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.rglob("*.py") if path.is_file()]
    files = [path for path in files if not _NOT_STDLIB & set(path.relative_to(root).parts)]
    if not files:
        raise DataError(f"This Python has no standard library sources in {root}: use files:GLOB instead.")
    files = sorted(files, key=lambda file: file.relative_to(root).as_posix())
    return FileSource(Listing("stdlib", root, files, {}), "text")


def _files(pattern: str, text_field: str) -> "FileSource":
    listing = find_files(pattern, _SUFFIXES, "Records in .csv, .tsv and .json are for chat:, pairs: and labels:.")
    return FileSource(listing, text_field)


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


class FileSource:
    def __init__(self, listing: Listing, text_field: str):
        self.name, self.notes = listing.name, listing.notes()
        self._root, self._files = listing.root, listing.files
        self._field = text_field

    def fingerprint(self) -> list:
        return [self._field, *fingerprints.of_files(self._files)]

    def fetch(self) -> None:
        """Local files are here."""

    def documents(self, bad: BadLines) -> Iterator[Document]:
        for file in self._files:
            name = document_name(file, self._root)
            if compressed.plain_suffix(file) in _WHOLE:
                with compressed.opened(file) as stream:
                    content = stream.read()
                try:
                    text = content.decode("utf-8-sig")  # drops a byte order mark
                except UnicodeDecodeError as error:
                    line = content.count(b"\n", 0, error.start) + 1
                    bad.add(f"{file}, line {line}", f"not UTF-8 ({error.reason})")
                    continue
                yield Document(name, text)
            else:
                yield from self._lines(file, name, bad)

    def _lines(self, file: Path, name: str, bad: BadLines) -> Iterator[Document]:
        found = False
        with compressed.opened(file) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                found = True
                try:
                    text = self._parse(line)
                except (ValueError, RecursionError) as error:
                    bad.add(f"{file}, line {number}", str(error))
                    continue
                yield Document(f"{name}:{number}", text)
        bad.empty += not found

    def _parse(self, line: bytes) -> str:
        record = parsed_line(line)
        if self._field not in record:
            found = ", ".join(sorted(record))
            hint = f"{found}; files[{min(record)}]:PATH reads that one" if record else "an empty object"
            raise ValueError(f'no field "{self._field}", only {hint}')
        text = record[self._field]
        if not isinstance(text, str):
            raise ValueError(f'field "{self._field}" is not a string but {type(text).__name__}')
        text.encode()  # JSON can spell lone surrogates, which no encoding can write: a ValueError
        return text


class TfdsSource:
    """A TFDS dataset, downloaded and written as array_record (the one format that needs no TensorFlow) at first use.

    Its own train and validation (or test) splits are kept; with a train split alone, documents are split like others.
    """

    def __init__(self, dataset: str, text_field: str | None):
        self.name, self.notes = slug(dataset if not Path(dataset).is_dir() else Path(dataset).resolve().parent.name), ()
        self._dataset = dataset
        self._field = text_field

    def fingerprint(self) -> list:
        info = self._builder().info
        # A catalogue name has a version; a folder may be written anew.
        if not os.path.isdir(self._dataset):
            return [self._field, info.full_name]
        files = [path for path in Path(self._dataset).rglob("*") if path.is_file()]
        return [self._field, info.full_name, *fingerprints.of_files(sorted(files))]

    def fetch(self) -> None:
        builder = self._builder()
        if os.path.isdir(self._dataset):
            return
        try:
            builder.download_and_prepare()
        except Exception as error:  # each dataset has its own code to download and parse, which may fail in any way
            raise DataError(
                f"TFDS dataset {self._dataset!r} could not be downloaded ({type(error).__name__}: {error}). Is there a "
                "network? Without one, prepare the dataset on another machine and copy its folder to "
                f"{builder.data_dir}, or set TFDS_DATA_DIR to where it is."
            ) from error

    def documents(self, bad: BadLines) -> Iterator[Document]:
        builder = self._builder()
        held_out = next((name for name in ("validation", "valid", "test") if name in builder.info.splits), None)
        if "train" not in builder.info.splits:
            raise DataError(
                f"TFDS dataset {self._dataset} has no split of the name train, only {', '.join(builder.info.splits)}. "
                "Prepare it anew with one, or write its text into files, for files:GLOB."
            )
        key = self._text_field(builder)
        for name, split in (("train", "train" if held_out else None), (held_out, "validation")):
            if name is None:
                continue
            for i, example in enumerate(builder.as_data_source(split=name)):
                try:
                    text = example[key].decode() if isinstance(example[key], bytes) else str(example[key])
                except UnicodeDecodeError as error:
                    bad.add(f"{self._dataset}, {name} example {i}", f"not UTF-8 ({error.reason})")
                    continue
                yield Document(f"{name}:{i}", text, split)

    def _builder(self):
        import tensorflow_datasets as tfds
        import tensorflow_datasets.text  # the catalogue finds c4, lm1b and wikipedia only after this

        if os.path.isdir(self._dataset):
            try:
                return tfds.builder_from_directory(self._dataset)
            except Exception as error:
                raise DataError(
                    f"{self._dataset} is not the folder of a TFDS dataset, which holds a dataset_info.json: {error}"
                ) from error
        try:
            return tfds.builder(self._dataset, file_format="array_record")
        except tfds.core.DatasetNotFoundError as error:
            known = tfds.list_builders(with_community_datasets=False)
            close = difflib.get_close_matches(self._dataset.split("/")[0], known)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else "see tensorflow.org/datasets/catalog for the names."
            )
            raise DataError(f"There is no TFDS dataset {self._dataset!r}: {hint}") from error
        except (AssertionError, ValueError, OSError, ImportError) as error:
            raise DataError(f"TFDS dataset {self._dataset!r} can't be opened: {error}") from error

    def _text_field(self, builder) -> str:
        import tensorflow_datasets as tfds

        texts = sorted(name for name, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text))
        wanted = self._field or ("text" if "text" in texts else None) or (texts[0] if len(texts) == 1 else None)
        if not texts:
            raise DataError(
                f"TFDS dataset {self._dataset!r} has no text feature, only {', '.join(builder.info.features)}."
            )
        if wanted not in texts:
            raise DataError(
                f"TFDS dataset {self._dataset!r}: which field is the text? Write tfds[FIELD]:{self._dataset}, with one "
                f"of these fields: {', '.join(texts)}."
            )
        return wanted
