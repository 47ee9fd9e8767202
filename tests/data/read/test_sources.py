"""Every kind of source gives its documents, and broken input is named."""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import zstandard

from data.batch import DataError
from data.read.documents import BadLines
from data.read.sources import open_source


def read(spec, limit: int = 100):
    bad = BadLines(limit)
    return [(document.name, document.text) for document in open_source(str(spec)).documents(bad)], bad


def write_lines(path: Path, lines: list[str]) -> None:
    content = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":  # two frames, as from tools that append
        half = len(content) // 2
        content = zstandard.compress(content[:half]) + zstandard.compress(content[half:])
    path.write_bytes(content)


def test_files_are_documents_with_portable_names(tmp_path):
    folder = tmp_path / "a folder" / "sub"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"zwei\r\n")
    (folder.parent / "a.md").write_bytes(b"\xef\xbb\xbfone")
    (folder.parent / "empty.py").write_bytes(b"")
    (folder.parent / "not text.bin").write_bytes(b"\x00")
    expected = [("a.md", "one"), ("sub/b.txt", "zwei\r\n")]
    assert sorted(read(folder.parent)[0]) == [expected[0], ("empty.py", ""), expected[1]]
    assert read(f"files:{folder.parent}/**/*.[mt]*")[0] == expected
    assert read(f"files:{folder.parent}/a.md")[0] == expected[:1]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
def test_lines_are_documents_and_broken_ones_are_named(tmp_path, name):
    path = tmp_path / name
    good = [json.dumps({"text": f"text {i} é\n", "n": i}) for i in range(2000)]
    broken = ['{"text": "cut', '{"other": 1}', "[1]", '{"text": 5}', '{"text": "\\ud800"}', '{"text": "\udcff"}']
    lines = [*good[:3], "", *broken, *good[3:], '{"text": ""}']
    write_lines(path, lines)
    found, bad = read(f"files:{path}")
    assert [text for _, text in found] == [f"text {i} é\n" for i in range(2000)] + [""]
    assert found[0][0] == f"{name}:1"
    assert found[3][0] == f"{name}:11"
    assert (bad.count, bad.empty) == (len(broken), 0)
    reasons = ["not JSON", 'no field "text", only other', "not list", "not a string but int", "surrogates"]
    for number, (line, reason) in enumerate(zip(bad.first, reasons, strict=True), start=5):
        assert line.startswith(f"{path}, line {number}: ")
        assert reason in line


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    write_lines(tmp_path / "x.jsonl", ['\ufeff{"text": "one"}', '{"text": "two"}'])
    found, bad = read(tmp_path / "x.jsonl")
    assert [text for _, text in found] == ["one", "two"] and bad.count == 0


def test_another_field(tmp_path):
    write_lines(tmp_path / "x.jsonl", ['{"body": "yes", "text": "no"}'])
    assert read(f"files[body]:{tmp_path}/*.jsonl")[0] == [("x.jsonl:1", "yes")]


def test_the_advice_for_a_missing_field_works(tmp_path):
    write_lines(tmp_path / "x.jsonl", ['{"body": "yes", "n": 1}'])
    _, bad = read(tmp_path / "x.jsonl")
    assert 'no field "text", only body, n; files[body]:PATH reads that one' in bad.first[0]
    assert read(f"files[body]:{tmp_path}/x.jsonl")[0] == [("x.jsonl:1", "yes")]


def test_too_many_broken_lines_stop_the_run(tmp_path):
    write_lines(tmp_path / "x.jsonl", ["broken"] * 4)
    assert read(tmp_path, limit=4)[1].count == 4
    with pytest.raises(DataError, match=r"max_bad_lines = 3[\s\S]*x.jsonl, line 1: not JSON"):
        read(tmp_path, limit=3)


def test_a_file_that_is_not_utf8_is_skipped_and_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nbroken \xff\n")
    (tmp_path / "b.txt").write_bytes(b"good")
    found, bad = read(tmp_path)
    assert found == [("b.txt", "good")]
    assert bad.first == [f"{tmp_path}/a.txt, line 2: not UTF-8 (invalid start byte)"]


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, name):
    path = tmp_path / name
    write_lines(path, [json.dumps({"text": str(i) * 50}) for i in range(5000)])
    for size in (len(path.read_bytes()) * 2 // 3, 30):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(DataError, match=f"{name} can't be read"):
            read(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match=f"{name} can't be read"):
        read(path)


def test_stdlib():
    found, bad = read("stdlib")
    names = [name for name, _ in found]
    assert "json/decoder.py" in names
    assert names == sorted(names)
    assert len(names) > 300
    assert bad.count == 0
    assert not any("site-packages" in name or name.startswith("test/") for name in names)
    assert dict(found)["json/decoder.py"] == Path(sys.modules["json.decoder"].__file__).read_text("utf-8")


def test_the_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = open_source(str(path)).fingerprint()
    assert open_source(str(path)).fingerprint() == before
    path.write_text("three")
    assert open_source(str(path)).fingerprint() != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("files:{}/missing.txt", "no file or folder .*missing.txt"),
        ("files:{}/*.txt", r"No file matches .*\*.txt"),
        ("{}", "No file matches"),
        ("{}/data.parquet", "data.parquet: unknown kind of file; these can be read: .txt"),
        ("{}/data.csv", "data.csv: unknown kind of file; .* are read as examples"),
        ("hdfs:foo", "Unknown data source 'hdfs:foo'"),
        ("tfds:lm1c", "no TFDS dataset 'lm1c': did you mean .*lm1b"),
        ("tfds:lm1b:9.9.9", "'lm1b:9.9.9' can't be opened.*9.9.9"),
        ("tfds:{}", "not the folder of a TFDS dataset"),
    ],
)
def test_errors(tmp_path, spec, message):
    for name in ("data.parquet", "data.csv"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=message):
        open_source(spec.format(tmp_path)).fingerprint()


class Reviews(tfds.core.GeneratorBasedBuilder):
    """A dataset by someone else, with two text features, a train split and a test split."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        features = {
            "review": tfds.features.Text(),
            "title": tfds.features.Text(),
            "stars": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train", 30), "test": self._generate_examples("test", 5)}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"review": f"{split} review {i} é", "title": "t", "stars": i}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    builder = Reviews(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_a_tfds_dataset_keeps_its_splits(reviews):
    source = open_source(f"tfds[review]:{reviews}")
    found = list(source.documents(BadLines(0)))
    assert sorted(d.text for d in found if d.split == "train") == sorted(f"train review {i} é" for i in range(30))
    assert sorted(d.text for d in found if d.split == "validation") == sorted(f"test review {i} é" for i in range(5))
    assert len({d.name for d in found}) == 35
    assert source.name == "reviews"


def test_a_tfds_folder_that_is_written_anew_is_noticed(reviews, tmp_path):
    folder = shutil.copytree(reviews, tmp_path / "reviews" / "2.0.0")
    before = open_source(f"tfds[review]:{folder}").fingerprint()
    assert open_source(f"tfds[review]:{folder}").fingerprint() == before
    path = next(folder.glob("*train*array_record*"))
    content, time = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    assert open_source(f"tfds[review]:{folder}").fingerprint() != before


def test_a_tfds_dataset_needs_a_text_field(reviews):
    for spec in (f"tfds:{reviews}", f"tfds[stars]:{reviews}"):
        with pytest.raises(DataError, match=r"which field is the text.*review, title"):
            list(open_source(spec).documents(BadLines(0)))


def test_a_download_that_fails_says_so(tmp_path, monkeypatch):
    def download_and_prepare(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    with pytest.raises(DataError, match=r"'lm1b' could not be downloaded.*no route to host.*Is there a network"):
        open_source("tfds:lm1b").fetch()
