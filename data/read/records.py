"""Records with named fields, from files: where examples come from.

    .csv         a line of column names, then a record a line; a quoted field may hold line breaks
    .tsv         the same with tabs; whether fields are quoted shows in the file (data/read/tables.py)
    .jsonl       an object a line
    .json        an array of objects

Each may end in `.gz` or `.zst`. All is read as UTF-8. A record that can't be read, or that isn't what its source is
for, is skipped and kept in `BadLines` with file and line (in a JSON array: the item's number); a file as a whole that
can't be read is an error.
"""

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
    """A record has no field of the name that is asked for: `what` says so, and the message also what to do in a config,
    whose field `setting` gives the name."""

    def __init__(self, name: str, record: Mapping[str, Any], setting: str):
        self.what = f"no field {name!r}, only {', '.join(map(str, record)) or '(none)'}"
        super().__init__(f"{self.what}; set config.{setting} to one of them" if record else self.what)


class RecordSource:
    """The records of files as documents, each one canonical JSON object; a `Source` (data/read/documents.py).

    Args:
      parse: record -> JSON object; its ValueError says what is wrong with the record. "split" in it is 'train',
        'validation' or 'test', where the record itself says so.
      settings: on which, beside the files, the result of `parse` depends; JSON.
    """

    def __init__(self, pattern: str, parse: Callable[[Mapping[str, Any]], dict], settings: Any):
        listing = find_files(pattern, SUFFIXES, "Plain text (.txt, .md, .py) is for files: in config.data.sources.")
        self.name, self.notes = listing.name, listing.notes()
        self._root, self._files = listing.root, listing.files
        self._parse, self._settings = parse, settings

    def fingerprint(self) -> list:
        return [self._settings, *fingerprints.of_files(self._files)]

    def fetch(self) -> None:
        """Local files are here."""

    def documents(self, bad: BadLines) -> Iterator[Document]:
        for file in self._files:
            name, found, before = document_name(file, self._root), False, bad.count
            for where, record in read_file(file, bad):
                found = True
                try:
                    parsed = self._parse(record)
                    split = parsed.pop("split", None)
                    # Inside its fields the order stays: chat templates write out what tools are given as.
                    text = json.dumps(dict(sorted(parsed.items())), ensure_ascii=False)
                    text.encode()  # JSON can spell lone surrogates, which no encoding can write: a ValueError
                except ValueError as error:
                    if isinstance(error, MissingField) and compressed.plain_suffix(file) in DELIMITERS:
                        # All lines of a table lack it.
                        raise DataError(f"{file}, line 1: {error}.") from error
                    bad.add(f"{file}, {where}", str(error))
                    continue
                yield Document(f"{name}, {where}", text, split)
            bad.empty += not found and bad.count == before


def read_file(file: Path, bad: BadLines) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ('line 3', record) of one file; 'item 3' of a JSON array. What is no record goes to `bad`."""
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
            record = parsed_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        except (ValueError, RecursionError) as error:
            bad.add(f"{file}, line {number}", str(error))
        else:
            yield f"line {number}", record


def _array(stream, file: Path, bad: BadLines) -> Iterator[tuple[str, dict]]:
    try:
        items = json.loads(stream.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; if it holds an object a line, name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(
            f"{file}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}){hint}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} can't be read as JSON: {error}.") from error
    if not isinstance(items, list):
        raise DataError(
            f"{file}: a JSON array of objects is expected, not {type(items).__name__}; a file of one object a line is "
            "named .jsonl."
        )
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            yield f"item {number}", item
        else:
            bad.add(f"{file}, item {number}", f"a JSON object is expected, not {type(item).__name__}")


def field(record: Mapping[str, Any], name: str, setting: str) -> Any:
    """The field `name` of a record. `setting` is what names it in the config.

    Raises:
      MissingField: the record has no such field.
      ValueError: it is null.
    """
    if name not in record:
        raise MissingField(name, record, setting)
    if record[name] is None:
        raise ValueError(f"field {name!r} is null; fill it in or take the record out")
    return record[name]
