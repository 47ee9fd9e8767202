"""A path lists each real file once, whatever links exist, and every file that is not read is reported."""

import glob
import gzip
import os
import socket
from pathlib import Path

import pytest

from data.batch import DataError
from data.read.listing import find_files

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def found(pattern) -> list[str]:
    listing = find_files(str(pattern), SUFFIXES, "")
    return [file.relative_to(listing.root).as_posix() for file in listing.files]


def notes(pattern) -> str:
    return "\n".join(find_files(str(pattern), SUFFIXES, "").notes())


@pytest.fixture(params=["{}", "{}/**", "{}/**/*.txt", "{}/**/*.[t]xt"])
def everything(request):
    """Returns patterns that match all text files below a folder."""
    return request.param.format


def test_a_folder_that_links_lead_to_is_read_once(tmp_path, everything):
    data = make(tmp_path / "data", "b/x.txt", "b/y.txt", "c.txt")
    (data / "a").symlink_to(data / "b")
    (data / "z").symlink_to("b")
    # Named by the path without links, not by the first path in the order.
    assert found(everything(data)) == ["b/x.txt", "b/y.txt", "c.txt"]
    assert f"not read: further paths to files or folders that are read (2): {data}/a, {data}/z" in notes(
        everything(data)
    )


def test_folders_and_files_elsewhere_are_read_through_links(tmp_path, everything):
    make(tmp_path / "elsewhere", "deep/x.txt", "y.txt")
    data = make(tmp_path / "data", "own.txt")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "file.txt").symlink_to(tmp_path / "elsewhere" / "y.txt")
    (data / "second").symlink_to(tmp_path / "elsewhere" / "deep")
    assert found(everything(data)) == ["file.txt", "linked/deep/x.txt", "own.txt"]


def test_a_link_that_is_added_later_renames_no_document(tmp_path, everything):
    data = make(tmp_path / "data", "m/x.txt", "m/y.txt")
    before = found(everything(data))
    (data / "a.txt").symlink_to("m/x.txt")
    (data / "b").symlink_to("m")
    assert found(everything(data)) == before


def test_a_file_whose_kind_only_a_link_tells(tmp_path):
    """In Hugging Face's cache, files are named by their hash, and links to them have the suffix."""
    hub = make(tmp_path / "hub", "blobs/0a1b")
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / "train.txt").symlink_to("../blobs/0a1b")
    assert found(hub) == found(hub / "**") == ["snapshots/train.txt"]
    assert found(hub / "snapshots") == ["train.txt"]


def test_loops_end(tmp_path, everything):
    data = make(tmp_path / "data", "x.txt", "sub/y.txt")
    for i in range(5):  # glob.glob would find 5**40 paths
        (data / f"loop{i}").symlink_to(".")
    (data / "sub" / "up").symlink_to("..")
    (data / "self").symlink_to("self")
    assert found(everything(data)) == ["sub/y.txt", "x.txt"]
    assert "(6)" in notes(everything(data))


def test_what_is_not_read_is_said(tmp_path, monkeypatch):
    data = make(tmp_path / "data", "x.txt", "a.pdf", "b.pdf", "Makefile")
    (data / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.link(data / "x.txt", data / "y.txt")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(data)  # the path of a socket must be short
        server.bind("s.txt")
        said = notes(data)
    assert found(data) == ["x.txt"]
    assert f"broken links (1): {data}/gone.txt" in said
    assert f"further paths to files or folders that are read (1): {data}/y.txt" in said
    assert f"neither files nor folders (1): {data}/s.txt" in said
    assert "files of other kinds (.pdf 2, without a suffix 1) (3)" in said
    make(tmp_path / "other", "x.txt", "sub/y.txt")
    assert f"folders, because the pattern has no ** (1): {tmp_path}/other/sub" in notes(tmp_path / "other" / "*")
    assert notes(tmp_path / "other") == notes(tmp_path / "other" / "**") == ""


def test_suffixes_in_upper_case(tmp_path):
    data = make(tmp_path / "data", "A.TXT", "b.Txt", "c.txt")
    (data / "D.JSONL.GZ").write_bytes(gzip.compress(b"{}"))
    assert found(data) == ["A.TXT", "D.JSONL.GZ", "b.Txt", "c.txt"]
    assert found(data / "A.TXT") == ["A.TXT"]
    assert found(data / "*.*") == ["A.TXT", "D.JSONL.GZ", "b.Txt", "c.txt"]
    assert notes(data) == ""


@pytest.mark.parametrize(
    "pattern",
    ["*.txt", "*/*.txt", "**/*.txt", "a/**/*.txt", "**/b/*.txt", "[ab]/*/*.txt", "**/.hidden/*", "**/.*", "a/?.txt"],
)
def test_globs_mean_what_they_mean_elsewhere(tmp_path, pattern):
    names = ["x.txt", "a/x.txt", "a/b/x.txt", "a/b/c/y.txt", "b/b/z.txt", ".hidden/x.txt", "a/.h.txt"]
    make(tmp_path, *names)
    expected = {Path(path) for path in glob.glob(f"{tmp_path}/{pattern}", recursive=True) if os.path.isfile(path)}
    assert set(find_files(f"{tmp_path}/{pattern}", SUFFIXES, "").files) == expected


def test_relative_patterns(tmp_path, monkeypatch):
    make(tmp_path, "x.txt", "sub/y.txt")
    monkeypatch.chdir(tmp_path)
    assert found("*.txt") == ["x.txt"] and found("**/*.txt") == ["sub/y.txt", "x.txt"] == found(".")
    assert found("s*/../x.txt") == ["sub/../x.txt"]


def test_errors(tmp_path, monkeypatch):
    data = make(tmp_path / "data", "a.csv")
    with pytest.raises(DataError, match=r"No file matches .*can be read: \.txt.* Elsewhere.*other kinds \(\.csv 1\)"):
        find_files(str(data), SUFFIXES, "Elsewhere.")
    (data / "link.txt").symlink_to("gone.txt")
    with pytest.raises(DataError, match=r"link.txt is a link to gone.txt, which does not exist"):
        found(data / "link.txt")
    with pytest.raises(DataError, match="No file matches"):
        found(tmp_path / "nowhere" / "*.txt")

    def listdir(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(DataError, match=f"The folder {data} can't be listed: Permission denied"):
        found(data)


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="empty path"):
        find_files("", (".txt",), "")
