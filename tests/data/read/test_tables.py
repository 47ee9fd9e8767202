"""Tables that common programs write as .csv and .tsv are read back, and unclear ones are refused."""

import csv
import io

import pytest

from data.batch import DataError
from data.read.documents import BadLines
from data.read.records import read_file

TEXTS = [
    "plain",
    'say "hello"',
    '"all of it"',
    "a\ttab",
    "two\nlines",
    "two\r\nlines",
    '"',
    '""',
    "",
    ' "',
    "a,b",
    '5" disk',
]


def read(path, limit: int = 0) -> list[tuple[str, dict]]:
    return list(read_file(path, BadLines(limit)))


def written(texts, **options) -> str:
    """Returns a table as pandas and Hugging Face's datasets write it with sep='\\t': both use the csv module."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", **({"lineterminator": "\n"} | options))
    writer.writerow(["n", "text", "more"])
    writer.writerows([i, text, "x"] for i, text in enumerate(texts))
    return stream.getvalue()


def write(tmp_path, content: str):
    path = tmp_path / "x.tsv"
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_quoted_as_in_csv(tmp_path, quoting, ending):
    path = write(tmp_path, written(TEXTS, quoting=quoting, lineterminator=ending))
    assert [record["text"] for _, record in read(path)] == TEXTS


@pytest.mark.parametrize("text", TEXTS)
def test_one_such_text_among_others(tmp_path, text):
    path = write(tmp_path, written(["first", text, "last"]))
    assert [record for _, record in read(path)] == [
        {"n": str(i), "text": found, "more": "x"} for i, found in enumerate(["first", text, "last"])
    ]


@pytest.mark.parametrize("text", [text for text in TEXTS if not set("\t\r\n") & set(text) and text not in ('"', '""')])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_nothing_is_quoted(tmp_path, text, ending):
    """IANA's text/tab-separated-values has no quoting, and neither have GLUE's files."""
    rows = [["n", "text"], ["1", text], ["2", "other"], ["3", 'a "b" c'], ["4", '"a" b']]
    path = write(tmp_path, "".join("\t".join(row) + ending for row in rows))
    assert [[record["n"], record["text"]] for _, record in read(path)] == rows[1:]


@pytest.mark.parametrize(
    "lines",
    [
        ['1\t"a', "2\tb"],  # never closed
        ['1\t"a', '2\tb"', "3\tc"],  # closed in another record
        ['1\t"a" b', "2\tc"],
        ['1\t"a"', "2\tb"],  # only some fields of the column have quotes, and no field needs them
        ['"1\ta', '2"\tb', "3\tc"],
        ['1\t"', '2\t"', "3\tc"],
    ],
)
def test_quotes_that_are_characters(tmp_path, lines):
    path = write(tmp_path, "n\ttext\n" + "".join(f"{line}\n" for line in lines))
    assert ["\t".join(record.values()) for _, record in read(path)] == lines


def test_all_fields_of_a_column_in_quotes(tmp_path):
    path = write(tmp_path, 'n\ttext\n1\t"a"\n2\t"b c"\n3\t\n')
    assert [record["text"] for _, record in read(path)] == ["a", "b c", ""]


def test_one_column(tmp_path):
    path = write(tmp_path, 'text\n"two\nlines"\nother\n"a ""b"""\n')
    assert read(path) == [
        ("line 2", {"text": "two\nlines"}),
        ("line 4", {"text": "other"}),
        ("line 5", {"text": 'a "b"'}),
    ]


def test_records_are_named_by_their_first_line(tmp_path):
    path = write(tmp_path, 'n\ttext\n\n1\t"two\nlines"\n2\t"a\tb"\n3\n4\tx\n')
    bad = BadLines(1)
    assert [where for where, _ in read_file(path, bad)] == ["line 3", "line 5", "line 7"]
    assert bad.first == [f"{path}, line 6: 1 fields, but the first line names 2 columns"]


def test_a_file_that_is_written_in_two_ways_is_refused(tmp_path):
    path = write(tmp_path, 'n\ttext\n1\t"a ""b"" c"\n2\td\n3\t"e" f\n')
    with pytest.raises(
        DataError, match=r"x\.tsv: in line 2 quotes enclose .* in line 4 a quote is an ordinary character"
    ):
        read(path)


def test_errors(tmp_path):
    with pytest.raises(
        DataError, match=r"x\.tsv: in line 1 quotes enclose .* in line 3 a quote is an ordinary character"
    ):
        read(write(tmp_path, '"n"\t"text"\n"1"\t"a"\n"2"\t"b" c\n'))
    with pytest.raises(
        DataError, match=r"x\.tsv: in line 1 quotes enclose .* in line 2 a quote is an ordinary character"
    ):
        read(write(tmp_path, '"n"\t"text"\n1\t"a\n2\tb\n'))
    path = tmp_path / "y.tsv"
    path.write_bytes(b"n\ttext\n1\t\xff\n")
    with pytest.raises(DataError, match=r"y\.tsv, after line \d: not UTF-8"):
        read(path)


def test_csv_as_the_module_writes_it(tmp_path):
    path = tmp_path / "x.CSV"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text"])
        writer.writerows([text] for text in TEXTS)
    assert [record["text"] for _, record in read(path)] == TEXTS
