"""Fingerprints notice changes of files."""

import os

import pytest

from data.batch import DataError
from data.read import fingerprints


def rewritten(path, content: bytes) -> None:
    """Writes new content but keeps the modification time."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize(("size", "places"), [(1, [0]), (1 << 20, [0, 70_000, -1]), (5 << 20, [0, 65_535, -1])])
def test_other_content_of_the_same_size_and_time(tmp_path, size, places):
    path, content = tmp_path / "x.txt", bytes(size)
    path.write_bytes(content)
    before = fingerprints.of_files([path])
    assert fingerprints.of_files([path]) == before
    for place in places:
        changed = bytearray(content)
        changed[place] = 1
        rewritten(path, changed)
        assert fingerprints.of_files([path]) != before
    rewritten(path, content)
    assert fingerprints.of_files([path]) == before


def test_another_time_alone(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("text")
    before = fingerprints.of_files([path])
    os.utime(path, (1, 1))
    assert fingerprints.of_files([path]) != before


def test_of_very_many_files_some_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_HASHED_FILES", 4)
    files = [tmp_path / f"{i}.txt" for i in range(10)]
    for file in files:
        file.write_text("text")
    assert [len(facts) for facts in fingerprints.of_files(files)] == [4, 3, 3] * 3 + [4]


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.txt can't be read: No such file"):
        fingerprints.of_files([tmp_path / "gone.txt"])
