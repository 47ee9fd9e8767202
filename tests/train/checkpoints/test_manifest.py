"""Every damage to a file of a checkpoint is found and reported."""

import json

import pytest

from train.checkpoints import manifest

CHUNK = manifest._CHUNK


@pytest.fixture
def folder(tmp_path):
    """Makes a step of four files: small ones, an empty one, and one a little longer than two chunks."""
    (tmp_path / "model" / "d").mkdir(parents=True)
    (tmp_path / "model" / "d" / "large").write_bytes(bytes(range(256)) * (2 * CHUNK // 256) + b"tail")
    (tmp_path / "model" / "empty").write_bytes(b"")
    (tmp_path / "loop").write_text("{}")
    (tmp_path / "training").write_bytes(b"abc")
    manifest.write(tmp_path)
    assert manifest.problems(tmp_path) == []
    return tmp_path


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_one_flipped_bit(folder, at):
    flip(folder / "model/d/large", at)
    line = f"model/d/large has other bytes than were written, from byte {at // CHUNK * CHUNK:,} on"
    assert manifest.problems(folder) == [line]
    # The chunks are shared among several processes, and one of them finds the damage.
    assert [found for i in range(3) for found in manifest.problems(folder, share=(i, 3))] == [line]
    assert manifest.problems(folder, "sizes") == manifest.problems(folder, "off") == []
    assert manifest.problems(folder, "sampled") in ([line], [])


def test_a_sample_has_the_ends_of_every_file(folder):
    for at in (0, 2 * CHUNK + 3):
        flip(folder / "model/d/large", at)
        assert len(manifest.problems(folder, "sampled")) == 1
        flip(folder / "model/d/large", at)
    flip(folder / "loop", 1)
    assert manifest.problems(folder, "sampled")[0].startswith("loop has other bytes")


def test_files_that_are_cut_gone_or_added(folder):
    (folder / "training").write_bytes(b"ab")
    (folder / "model/empty").unlink()
    (folder / "model/d/other").write_bytes(b"x")
    for level in ("full", "sampled", "sizes"):
        assert manifest.problems(folder, level) == [
            "model/empty is missing",
            "model/d/other does not belong to it",
            "training has 2 bytes instead of 3",
        ]


def test_a_step_without_a_good_manifest(folder):
    text = (folder / manifest.NAME).read_text()
    for damaged in (text[: len(text) // 2], "", "[]", json.dumps({"files": {}})):
        (folder / manifest.NAME).write_text(damaged)
        assert manifest.problems(folder)
    (folder / manifest.NAME).unlink()
    assert manifest.problems(folder) == ["manifest.json is missing: the step was not written to its end"]


def test_every_bit_of_a_manifest(tmp_path):
    """Any flipped bit makes the step damaged, unless it changes nothing that is read."""
    (tmp_path / "loop").write_text("{}")
    manifest.write(tmp_path)
    whole = (tmp_path / manifest.NAME).read_bytes()
    good = 0
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / manifest.NAME).write_bytes(content)
        good += not manifest.problems(tmp_path)
    assert good <= 8 * 4  # bits of spaces between JSON tokens


def test_a_path_that_leaves_the_folder(folder, tmp_path_factory):
    """A forged manifest cannot make other files be read."""
    secret = tmp_path_factory.mktemp("outside") / "secret"
    secret.write_bytes(b"abc")
    content = json.loads((folder / manifest.NAME).read_text())
    content["files"] |= {str(secret): content["files"]["training"], "../x": {"size": 0, "hashes": ["0"]}}
    (folder / manifest.NAME).write_text(json.dumps(content))
    assert manifest.problems(folder) == [f"{secret} is missing", "../x is missing"]


def test_what_orbax_stamps_afterwards_is_no_fault(folder):
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (folder / name).write_text("later")
    assert manifest.problems(folder) == []
