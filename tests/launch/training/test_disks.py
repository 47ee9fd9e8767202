"""Disks that are full or read-only, for a while or forever, and checkpoints that can't be read."""

import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
from orbax.checkpoint._src.futures import future

from data.tokens import tokenizer
from launch.run import workdirs
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import refused
from tests.launch.test_train import assert_same_run, losses
from train import loop
from train.checkpoints import manifest, read_back, saves
from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.checkpoints.literal_path import LiteralPath
from train.checkpoints.read_back import UnreadableCheckpoint
from train.record import metrics
from train.report import run_report, summary


@pytest.fixture(autouse=True)
def threads_of_failed_saves_end_with_the_process(monkeypatch):
    """A failed save leaves threads of Orbax, which wait for each other for five minutes. A program of launch/ ends
    without them (runtime.run), but pytest would wait at its end."""
    monkeypatch.setattr(future._SignalingThread, "daemon", True)


def test_a_full_disk_does_not_end_a_run(tiny, uninterrupted, tmp_path, monkeypatch, capsys):
    """The save after step 4 and the next one fail, because files may not grow. The third one has room, and the run
    equals one that always had room."""
    tiny.checkpoint_every = 4
    whole = uninterrupted(tiny)
    capsys.readouterr()
    monkeypatch.setattr(Checkpoints, "save", crowded(Checkpoints.save, steps=(4, 5)))
    train(tiny, tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("training continues, next attempt after step") == 2 and "none is complete yet" in said
    assert "File too large" in said
    rows = metrics.read(tmp_path / "run" / "metrics.jsonl")
    events = [row["event"] for row in rows if "event" in row and "start" not in row["event"]]
    assert [event["again_at"] for event in events] == [5, 7] and all(
        "File too large" in e["save_failed"] for e in events
    )
    assert_same_run(tiny, whole, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))


def crowded(save, steps):
    """Returns Checkpoints.save, but at these steps no file can grow beyond 4 kB, as if a quota were used up."""

    def limited(self, step, *rest):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if step not in steps:
            return save(self, step, *rest)
        self.wait()  # an earlier save must not be limited
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        try:
            save(self, step, *rest)
            self.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def reachable():
    """A folder whose parents every user may enter, unlike those of pytest's tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_folder_that_becomes_read_only(tiny, uninterrupted, reachable, monkeypatch, capsys):
    """The save after step 4 may not write, but the next one, a step later, may; nothing is missing."""
    tiny.checkpoint_every, workdir = 4, reachable / "run"
    whole = uninterrupted(tiny)
    monkeypatch.setattr(Checkpoints, "save", locked(Checkpoints.save, step=4))
    capsys.readouterr()
    train(tiny, workdir)
    assert "training continues, next attempt after step 5" in (said := capsys.readouterr().out)
    assert "Permission denied" in said and "none is complete yet" in said
    assert_same_run(tiny, whole, workdir)


def locked(save, step):
    """Returns Checkpoints.save, but at this step its folder is read-only."""

    def refusing(self, at, *rest):
        if at != step:
            return save(self, at, *rest)
        root = os.geteuid() == 0  # root may write everywhere, so another user saves
        self.directory.chmod(0o555)
        os.seteuid(65534 if root else os.geteuid())
        try:
            save(self, at, *rest)
            self.wait()
        finally:
            os.seteuid(0 if root else os.geteuid())
            self.directory.chmod(0o755)

    return refusing


def test_a_disk_that_stays_full_ends_the_run_after_its_last_step(tiny, tmp_path, monkeypatch):
    """The error has the system's message and the last complete step, which still exists."""
    monkeypatch.setattr(Checkpoints, "save", crowded(Checkpoints.save, steps=(8,)))
    monkeypatch.setattr(saves, "_SECONDS_BETWEEN", 0.1)
    refused(tiny, tmp_path / "run", CheckpointError, "File too large", "last complete one is step 4")
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run").latest_step == 4


def flipped(write):
    """Returns manifest.write, but one bit of the largest file of a part is flipped before, as by a faulty disk."""

    def lying(folder):
        file = max(
            (path for path in (folder / "training").rglob("*") if path.is_file()), key=lambda f: f.stat().st_size
        )
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        write(folder)

    return lying


@pytest.mark.parametrize("fault", ["not found", "other numbers"])
def test_a_first_checkpoint_that_can_not_be_read_ends_the_run(fault, tiny, tmp_path, monkeypatch):
    """The run ends at once, not after its last step. "not found": Orbax looks for files where it did not write them."""
    if fault == "not found":
        monkeypatch.delattr(LiteralPath, "glob")
    else:
        monkeypatch.setattr(manifest, "write", flipped(manifest.write))
    workdir = tmp_path / "a[b]" / "run"
    refused(tiny, workdir, UnreadableCheckpoint, "checkpoint 4, the first of this run, was read back", "is damaged: ")
    assert set(losses(workdir)) == {1, 2, 3, 4}


def test_only_the_first_checkpoint_of_a_run_is_read_back(tiny, uninterrupted, tmp_path, monkeypatch):
    """Another process that continues the run does not read one back again."""
    read, steps = read_back.compare, []
    monkeypatch.setattr(
        loop, "compare", lambda checkpoints, step, state: steps.append(step) or read(checkpoints, step, state)
    )
    train(tiny, tmp_path / "run")
    assert steps == [4]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    train(tiny, tmp_path / "run")
    assert steps == [4] and Checkpoints(tmp_path / "run").latest_step == 8


def test_a_full_disk_keeps_the_files_that_describe_a_run(tiny, uninterrupted, tmp_path):
    """A continued run writes these files again; if no file can grow beyond 20 bytes, the old ones stay as they are."""
    workdir = shutil.copytree(uninterrupted(tiny), tmp_path / "run")
    prepared = Workdir(workdir).prepared
    files = lambda: {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    before, (soft, hard) = files(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        for write in (
            lambda: workdirs.claim(workdir, tiny, prepared),
            lambda: tokenizer.load(prepared.tokenizer_path).save(workdir / "tokenizer.json"),
            lambda: summary.update(workdir, {"tokens": 1}),
            lambda: run_report.write_report(workdir),
            lambda: metrics.Writer(workdir, resume_step=2),
        ):
            with pytest.raises(OSError, match="File too large"):
                write()
            assert files() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
