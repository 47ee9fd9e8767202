"""Reads records of .csv and .tsv files: a line of column names, then one record per line.

In a .csv file, a field that contains a comma, a line break or a quote is enclosed in quotes, and the quotes inside are
doubled (RFC 4180). There are two conventions for .tsv files. pandas (`to_csv(sep="\\t")`), Hugging Face's datasets, R
and spreadsheets quote as in CSV. IANA's text/tab-separated-values, databases and data sets such as GLUE don't quote, so
a quote is an ordinary character. The file itself shows which one applies, and is read through once to find out:

    quoted   a column name is in quotes; or a field is in quotes that it needs, because it contains a tab, a line break
             or a quote; or all fields of a column are in quotes
    plain    a field begins with a quote but is not enclosed in quotes (`"a`, `"a" b`); or lines that quotes would join
             are whole records by themselves; or only some fields of a column are in quotes, and don't need them

A file that shows both is refused. A file without a quote at the start of a field reads the same either way. Lines end
in LF, CR LF or CR. Left out: backslash escapes.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from data.batch import DataError
from data.read import compressed
from data.read.documents import BadLines

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST = 1 << 28  # characters; the quote at the start of a longer field counts as an ordinary character

csv.field_size_limit(1 << 30)  # a field may hold a whole document


def read_table(file: Path, delimiter: str, bad: BadLines) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ('line 3', record) for each record, with the line in which it begins.

    A record with too few or too many fields goes to `bad`.

    Raises:
      DataError: the file can't be read, or its quotes are broken or ambiguous.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    if delimiter == "\t":
        with compressed.opened(file) as stream, _text(stream) as text:
            quoting = csv.QUOTE_MINIMAL if _Quotes(text).used(file) else csv.QUOTE_NONE
    with compressed.opened(file) as stream, _text(stream) as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True, quoting=quoting)
        names, line = None, 0
        try:
            for row in rows:
                line, begins = rows.line_num, line + 1
                if not row:
                    continue
                if names is None:
                    names = row
                    if len(set(names)) < len(names):
                        raise DataError(f"{file}, line {begins}: two columns have the same name: {', '.join(names)}.")
                elif len(row) != len(names):
                    bad.add(
                        f"{file}, line {begins}", f"{len(row)} fields, but the first line names {len(names)} columns"
                    )
                else:
                    yield f"line {begins}", dict(zip(names, row, strict=True))
        except UnicodeDecodeError as error:
            raise DataError(f"{file}, after line {line}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
        except csv.Error as error:
            raise DataError(f"{file}, line {line + 1}: {error}. Fix the quotes, or remove the line.") from error


@contextmanager
def _text(stream: compressed.Stream) -> Iterator[io.TextIOWrapper]:
    """Returns the text of a stream and leaves the stream open, because its opener closes it."""
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    try:
        yield text
    finally:
        text.detach()


class _Quotes:
    """What the quotes of a .tsv file show about its convention."""

    def __init__(self, lines: Iterable[str]):
        self._raw: list[str] = []  # lines of the current record
        self._names: list[str] = []
        self._cells: Counter[int] = Counter()  # by column: fields with text
        self._in_quotes: Counter[int] = Counter()  # by column: fields in quotes
        self.needed = self.plain = self.needless = 0  # the first line that shows it; 0: none does
        self.named = False  # a column name is in quotes
        try:
            self._read(lines)
        except UnicodeDecodeError:
            return  # `read_table` reports the line

    def used(self, file: Path) -> bool:
        """Returns whether the file quotes as CSV does.

        Raises:
          DataError: one line quotes as CSV does, and in another line a quote is an ordinary character.
        """
        needed = self.needed or int(self.named)  # column names are in line 1
        if needed and self.plain:
            raise DataError(
                f"{file}: in line {needed} quotes enclose a field as in CSV, but in line {self.plain} a quote is an "
                "ordinary character. Enclose both fields (and double the quotes in them), or write the records as "
                ".jsonl."
            )
        whole_column = any(count == self._cells[column] for column, count in self._in_quotes.items())
        return bool(needed) or bool(self.needless and not self.plain and whole_column)

    def _read(self, lines: Iterable[str]) -> None:
        rows, line = csv.reader(self._recorded(lines), delimiter="\t", strict=True), 0
        while True:
            self._raw.clear()
            begins = line + 1
            try:
                row = next(rows, None)
            except csv.Error:
                row = []
            line = rows.line_num
            if row is None:
                return
            if not self._raw:
                continue
            first = _fields(self._raw[0])
            quoted = any(field.startswith('"') for field in first)
            if not row:  # an empty line, or not valid CSV
                self.plain = self.plain or begins * quoted
            if not self._names:
                self._names, self.named = row or (first if quoted else []), bool(row) and quoted
            elif row:
                self._record(row, begins)

    def _recorded(self, lines: Iterable[str]) -> Iterator[str]:
        size = 0
        for line in lines:
            size = len(line) + (size if self._raw else 0)
            self._raw.append(line)
            if size > _LONGEST:
                return
            yield line

    def _record(self, row: list[str], line: int) -> None:
        """Counts the quotes of a record that is valid CSV."""
        parts = [_fields(raw) for raw in self._raw]
        if not any(field.startswith('"') for part in parts for field in part):
            if len(row) == len(self._names):
                self._cells.update(column for column, field in enumerate(row) if field)
        elif len(parts) > 1 or len(parts[0]) != len(row):  # quotes enclose a line break or a tab
            if all(len(part) == len(self._names) for part in parts) and len(self._names) > 1:
                self.plain = self.plain or line
            elif len(row) == len(self._names):
                self.needed = self.needed or line
        else:
            for column, field in enumerate(parts[0]):
                self._cells[column] += field not in ("", '""')
                if field.startswith('"') and field != '""':
                    self._in_quotes[column] += 1
                    if '"' in field[1:-1]:
                        self.needed = self.needed or line
                    else:
                        self.needless = self.needless or line


def _fields(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")
