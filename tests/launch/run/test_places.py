"""Tests workdirs with unusual names: they work, or are refused before anything is created."""

import pytest

from launch.program.checking import ConfigError
from launch.run import places, restore
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import refused
from tests.launch.test_train import ROOT, final, losses
from train.checkpoints.checkpoint import Checkpoints

ALL_CHARACTERS = "a[b]*?{c}**%41%/'q\" `$HOME` ~x#;&|<>()=,@ 日本 ü"


def test_a_workdir_of_all_characters(tiny, tmp_path, capsys):
    """A run there saves, continues and ends, and other programs read it; its data are in such a folder too."""
    workdir = tmp_path / ALL_CHARACTERS
    tiny.update(steps=4, eval_every=2, checkpoint_every=2)
    tiny.data.dir = str(tmp_path / "data [x]" / "y*?{z}")
    train(tiny, workdir)
    assert Checkpoints(workdir, reading=True).steps() == [2, 4]
    capsys.readouterr()
    train(tiny, workdir)
    assert "is done: 4 steps" in capsys.readouterr().out
    assert final(tiny, workdir)[0]
    _, model, _ = restore.for_inference(Workdir(workdir))
    assert model.config.num_layers == 2
    tiny.init_from, tiny.steps = str(workdir), 3
    train(tiny, tmp_path / "next")
    assert set(losses(tmp_path / "next")) == {1, 2, 3} and set(losses(workdir)) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "is a file"),
        ("file/run", "file is a file"),
        ("link", "is a broken symbolic link"),
        ("file_inside", "checkpoints is a file"),
        ("gs:/bucket/run", "'gs:' looks like the address of a bucket"),
        ("logs:/run", "'logs:' looks like the address of a bucket"),
        ("~/run", "$HOME"),
        ("back\\slash", "a backslash"),
        ("\udcff", "not UTF-8"),
        ("n\0", "null byte"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_workdir_that_can_not_be_one(place, words, tiny, tmp_path):
    """It is refused before data are prepared, and nothing is left behind."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file_inside").mkdir()
    (tmp_path / "file_inside" / "checkpoints").write_text("")
    before = sorted(tmp_path.rglob("*"))
    tiny.data.dir = str(tmp_path / "data")
    refused(tiny, tmp_path / place, ConfigError, words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_workdir_that_may_not_be_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # because root can write everywhere
    refused(tiny, tmp_path / "new" / "run", ConfigError, f"{tmp_path} is not writable")


def test_an_empty_workdir_is_not_this_folder():
    with pytest.raises(ConfigError, match="--workdir is empty"):
        places.named("")
    with pytest.raises(ConfigError, match="--out is empty"):
        places.named("", "--out")
    assert places.named("runs/a/") == ROOT / "runs" / "a"
