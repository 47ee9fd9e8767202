"""Records are read from files, and an error names the record."""

import pytest

from data.batch import DataError
from data.examples import kinds
from data.read.documents import BadLines, parsed_line
from data.read.records import RecordSource, read_file


def write(tmp_path, name: str, content: str):
    path = tmp_path / name
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "found", "skipped"),
    [
        (
            "a.csv",
            'x,y\n1,"a\nb"\n\n2,"say ""c"""\n3\n',
            [("line 2", "1", "a\nb"), ("line 5", "2", 'say "c"')],
            "line 6",
        ),
        ("a.tsv", 'x\ty\n1\t"a\n2\tb"\n1\t2\t3\n', [("line 2", "1", '"a'), ("line 3", "2", 'b"')], "line 4: 3 fields"),
        ("a.jsonl", '\ufeff{"x": 1, "y": 2}\n\n{"x": 1,}\n[]\n', [("line 1", 1, 2)], "line 3: not JSON"),
        ("a.json", '[{"x": 1, "y": 2}, 3]', [("item 1", 1, 2)], "item 2: it must be a JSON object, not int"),
    ],
)
def test_records_are_named_by_line_or_item(tmp_path, name, content, found, skipped):
    bad = BadLines(10)
    records = list(read_file(write(tmp_path, name, content), bad))
    assert records == [(where, {"x": x, "y": y}) for where, x, y in found]
    assert skipped in bad.first[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "in,answer\na,b\n",
            r"a\.csv, line 1: no field 'out', only in, answer; set config\.data\.pairs\.target",
        ),
        ("a.csv", 'in,out\na,"b" c\n', r"a\.csv, line 2: .*Fix the quotes"),
        ("a.csv", "in,in\na,b\n", "two columns have the same name"),
        ("a.json", '{"in": "a"}', "must be a JSON array of objects, not dict"),
        ("a.json", '{"in": "a"}\n{"in": "b"}', r"line 2: not JSON .*name it \.jsonl"),
        ("a.jsonl", '{"in": "a", "out": " "}\n', r"a\.jsonl, line 1: field 'out' is empty"),
        ("a.jsonl", '{"in": "a", "out": 3}\n', r"line 1: field 'out' is not a string but int"),
        ("a.jsonl", '{"in": "a"}\n', r"line 1: no field 'out', only in"),
        ("a.jsonl", '{"in": "a", "out": "\\ud800"}\n', "line 1: .*surrogates"),
        ("a.txt", "a", r"unknown kind of file; these can be read: \.csv"),
    ],
)
def test_what_cannot_be_a_pair_is_named_by_file_and_line(tmp_path, name, content, message):
    parse = lambda record: kinds.KINDS["pairs"].parse(record, {"source": "in", "target": "out"})
    with pytest.raises(DataError, match=message):
        list(RecordSource(str(write(tmp_path, name, content)), parse, None).documents(BadLines(0)))


def test_files_without_records_are_counted(tmp_path):
    for name in ("a.csv", "b.TSV", "c.jsonl"):
        write(tmp_path, name, "")
    write(tmp_path, "d.csv", "in,out\n")
    write(tmp_path, "e.json", "[]")
    write(tmp_path, "f.jsonl", '{"in": "a", "out": "b"}\n')
    bad = BadLines(0)
    assert len(list(RecordSource(str(tmp_path), dict, None).documents(bad))) == 1
    assert (bad.empty, bad.count) == (5, 0)


def test_json_in_another_encoding_is_refused(tmp_path):
    """Given bytes, json guesses the encoding, so some UTF-16 files would be read by chance."""
    with pytest.raises(ValueError, match="not UTF-8"):
        parsed_line('{"text": "ä"}'.encode("utf-16"))
