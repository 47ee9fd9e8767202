"""Reads records with named fields from files, for examples.

    .csv         a line of column names, then one record per line; a quoted field may contain line breaks
    .tsv         the same with tabs; the file shows whether fields are quoted (data/read/tables.py)
    .jsonl       one object per line
    .json        an array of objects

Each may also end in `.gz` or `.zst`. All files are read as UTF-8. A record that can't be read, or is not of its
source's kind, is skipped and recorded in `BadLines` with file and line (in a JSON array: the number of the item). A
file that can't be read at all is an error.
"""

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.batch import DataError
from data.read import compressed, fingerprints
from data.read.documents import BadLines, Document, parsed_line
from data.read.listing import document_name, find_files
from data.read.tables import DELIMITERS, read_table

SUFFIXES = tuple(kind + packed for kind in (*DELIMITERS, ".jsonl", ".json") for packed in ("", *compressed.SUFFIXES))


class MissingField(ValueError):
    """A record lacks a field.

    Attributes:
      what: says so; the message also says what to do.

    Args:
      name: the field.
      record: the record without it.
      setting: the config field that names the field.
    """

    def __init__(self, name: str, record: Mapping[str, Any], setting: str):
        self.what = f"no field {name!r}, only {', '.join(map(str, record)) or '(none)'}"
        super().__init__(f"{self.what}; set config.{setting} to one of them" if record else self.what)


class RecordSource:
    """A `Source` (data/read/documents.py) of records, each a document with one canonical JSON object.

    Args:
      pattern: the files, as in `find_files`.
      parse: record -> JSON object; a ValueError says what is wrong with the record. If the record names its split,
        "split" in the object is 'train', 'validation' or 'test'.
      settings: JSON that the result of `parse` depends on, beside the files.
    """

    def __init__(self, pattern: str, parse: Callable[[Mapping[str, Any]], dict], settings: Any):
        listing = find_files(pattern, SUFFIXES, "Plain text (.txt, .md, .py) is for files: in config.data.sources.")
        self.name, self.notes = listing.name, listing.notes()
        self._root, self._files = listing.root, listing.files
        self._parse, self._settings = parse, settings

    def fingerprint(self) -> list:
        return [self._settings, *fingerprints.of_files(self._files)]

    def fetch(self) -> None:
        """Does nothing, because the files are local."""

    def documents(self, bad: BadLines) -> Iterator[Document]:
        for file in self._files:
            name, found, before = document_name(file, self._root), False, bad.count
            for where, record in read_file(file, bad):
                found = True
                try:
                    parsed = self._parse(record)
                    split = parsed.pop("split", None)
                    # Only the top level is sorted: chat templates write tools out, so the order in fields matters.
                    text = json.dumps(dict(sorted(parsed.items())), ensure_ascii=False)
                    text.encode()  # raises a ValueError for lone surrogates, which JSON allows and UTF-8 does not
                except ValueError as error:
                    if isinstance(error, MissingField) and compressed.plain_suffix(file) in DELIMITERS:
                        # Every line of a table lacks the column.
                        raise DataError(f"{file}, line 1: {error}.") from error
                    bad.add(f"{file}, {where}", str(error))
                    continue
                yield Document(f"{name}, {where}", text, split)
            bad.empty += not found and bad.count == before


def read_file(file: Path, bad: BadLines) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ('line 3', record) for each record of a file, or ('item 3', record) for a JSON array.

    Anything that is not a record goes to `bad`.

    Raises:
      DataError: the file can't be read at all.
    """
    kind = compressed.plain_suffix(file)
    if kind in DELIMITERS:
        yield from read_table(file, DELIMITERS[kind], bad)
        return
    with compressed.opened(file) as stream:
        yield from (_lines if kind == ".jsonl" else _array)(stream, file, bad)


def _lines(stream, file: Path, bad: BadLines) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = parsed_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        except (ValueError, RecursionError) as error:
            bad.add(f"{file}, line {number}", str(error))
        else:
            yield f"line {number}", record


def _array(stream, file: Path, bad: BadLines) -> Iterator[tuple[str, dict]]:
    try:
        items = json.loads(stream.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; if it holds one object per line, name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(
            f"{file}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}){hint}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} can't be read as JSON: {error}.") from error
    if not isinstance(items, list):
        raise DataError(
            f"{file} must be a JSON array of objects, not {type(items).__name__}; name a file with one object per line "
            ".jsonl."
        )
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            yield f"item {number}", item
        else:
            bad.add(f"{file}, item {number}", f"it must be a JSON object, not {type(item).__name__}")


def field(record: Mapping[str, Any], name: str, setting: str) -> Any:
    """Returns the field `name` of a record; `setting` is the config field that names it.

    Raises:
      MissingField: the record has no such field.
      ValueError: it is null.
    """
    if name not in record:
        raise MissingField(name, record, setting)
    if record[name] is None:
        raise ValueError(f"field {name!r} is null; fill it in or remove the record")
    return record[name]
