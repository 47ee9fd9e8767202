"""Opens sources of text: turns a spec string into an iterator over documents.

    stdlib                the sources of Python's standard library, one document per file (no download needed)
    files:GLOB            local files; a bare path, folder or glob means the same. `.txt .md .py`: one document per
                          file; `.jsonl`: one per line, from its field "text". Each may also end in `.gz` or `.zst`, and
                          be in upper case. Links are followed, and each file is read once (data/read/listing.py).
    tfds:NAME[/CONFIG]    any TFDS dataset by name, or the folder of a prepared one

`files[FIELD]:` and `tfds[FIELD]:` read another field than "text". All files are read as UTF-8. A line or file that
can't be read (broken JSON, not UTF-8) is skipped and recorded in `BadLines` with file and line. Left out: the
processing of documents, which is in data/clean/.
"""

import codecs
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data.batch import DataError
from data.read import compressed, fingerprints
from data.read.documents import BadLines, Document, Source, parsed_line
from data.read.listing import Listing, document_name, find_files
from data.read.tfds_source import TfdsSource

_WHOLE = (".txt", ".md", ".py")
_LINES = (".jsonl",)
_SUFFIXES = tuple(kind + packed for kind in _WHOLE + _LINES for packed in ("", *compressed.SUFFIXES))
# Not read: third-party packages, tests (which some systems don't ship) and generated tables.
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "encodings"}


def open_source(spec: str) -> Source:
    """Returns the source that `spec` names.

    Raises:
      DataError: there is no such source, or it has no files.
    """
    match = re.fullmatch(r"(files|tfds)(?:\[([^\]]+)\])?:(.+)", spec, re.DOTALL)
    if spec == "stdlib":
        return _stdlib()
    if match is None and re.match(r"\w{2,}(\[.*\])?:", spec):
        raise DataError(
            f"Unknown data source {spec!r}: use stdlib, files:GLOB, tfds:NAME, a path, or examples, such as chat:GLOB."
        )
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
    listing = find_files(pattern, _SUFFIXES, "Records in .csv, .tsv and .json are read as examples (chat:GLOB).")
    return FileSource(listing, text_field)


class FileSource:
    """A `Source` of text files and `.jsonl` files.

    Args:
      listing: the files.
      text_field: the field of `.jsonl` records with the text.
    """

    def __init__(self, listing: Listing, text_field: str):
        self.name, self.notes = listing.name, listing.notes()
        self._root, self._files = listing.root, listing.files
        self._field = text_field

    def fingerprint(self) -> list:
        return [self._field, *fingerprints.of_files(self._files)]

    def fetch(self) -> None:
        """Does nothing, because the files are local."""

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
                    text = self._parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
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
        text.encode()  # raises a ValueError for lone surrogates, which JSON allows and UTF-8 does not
        return text
