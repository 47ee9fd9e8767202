"""Intact compressed files are read completely, and damaged ones raise an error that names the file."""

import gzip

import pytest
import zstandard

from data.batch import DataError
from data.read.compressed import opened, plain_suffix

PACK = {".gz": gzip.compress, ".zst": zstandard.compress}
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"meta"  # a zstd frame without text


def read(tmp_path, name: str, content: bytes) -> bytes:
    (tmp_path / name).write_bytes(content)
    with opened(tmp_path / name) as stream:
        return stream.read()


def with_window(text: bytes, log: int) -> bytes:
    """Returns a zstd frame (RFC 8878) that asks for a window of 2**log bytes: a header and one raw block."""
    block = (len(text) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + block + text


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".GZ", ".Zst"])
def test_whole_files(tmp_path, suffix):
    pack = PACK[suffix.lower()]
    for name, content, text in [
        ("one", pack(b"some text"), b"some text"),
        ("several", pack(b"some ") + pack(b"") + pack(b"text"), b"some text"),
        ("an empty text", pack(b""), b""),
    ]:
        assert read(tmp_path, name + suffix, content) == text


def test_what_the_formats_allow_behind_the_end(tmp_path):
    assert read(tmp_path, "zeros.gz", gzip.compress(b"text") + bytes(100)) == b"text"
    assert read(tmp_path, "skippable.zst", SKIPPABLE + zstandard.compress(b"text") + SKIPPABLE) == b"text"


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(
    "damage", ["empty", "zeros", "cut", "cut in the second", "garbage", "one byte more", "flipped"]
)
def test_damaged_files_are_errors_that_name_them(tmp_path, suffix, damage):
    whole = PACK[suffix](b"some text " * 50)
    if suffix == ".zst":
        whole = zstandard.ZstdCompressor(write_checksum=True).compress(b"some text " * 50)
    content = {
        "empty": b"",
        "zeros": bytes(50),
        "cut": whole[:-1],
        "cut in the second": whole + whole[:10],
        "garbage": whole + b"<html>502 Bad Gateway</html>",
        "one byte more": whole + b"\x1f",
        "flipped": whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:],
    }[damage]
    with pytest.raises(DataError, match=rf"damaged{suffix} can't be read: .*Repair it"):
        read(tmp_path, f"damaged{suffix}", content)


@pytest.mark.parametrize("log", [27, 28, 31])
def test_zstd_windows_up_to_2_gib(tmp_path, log):
    assert read(tmp_path, "x.zst", with_window(b"text", log)) == b"text"


def test_larger_windows_are_refused_with_advice(tmp_path):
    with pytest.raises(DataError, match=r"x\.zst can't be read: .*larger than 2 GiB.*Compress it again"):
        read(tmp_path, "x.zst", with_window(b"text", 32))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.gz", "a.zst"])
def test_a_git_lfs_pointer_is_no_text(name, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        read(tmp_path, name, pointer)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(".txt", ".txt"), (".jsonl.gz", ".jsonl"), ("A.JSONL.GZ", ".jsonl"), ("a.b.md", ".md"), (".csv", ".csv")],
)
def test_the_kind_of_a_file(name, kind, tmp_path):
    assert plain_suffix(tmp_path / name) == kind
