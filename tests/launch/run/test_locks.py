"""Tests locks of workdirs: a second run is refused, and a killed process leaves no lock."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.program.checking import ConfigError
from launch.run import locks
from launch.train import train
from tests.launch.conftest import refused
from tests.launch.test_train import ROOT, assert_same_run

HOLDER = """
import sys, time
from pathlib import Path
from launch.run import locks
with locks.alone(Path(sys.argv[1]), "trains"):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(workdir):
    """Starts another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_the_first_goes_on(tiny, uninterrupted, tmp_path, monkeypatch):
    """The error names the process that holds the folder, and the files of the first run are not affected."""
    whole, tries = uninterrupted(tiny), []
    monkeypatch.setattr(locks, "_SECONDS", 0.2)

    def again(step, _):
        words = f"process {os.getpid()} on {socket.gethostname()} trains in {tmp_path / 'run'} since 20"
        refused(tiny, tmp_path / "run", ConfigError, words, "another --workdir")
        tries.append(step)

    train(tiny, tmp_path / "run", observe=again)
    assert tries == [4, 8]
    assert_same_run(tiny, whole, tmp_path / "run")


def test_data_that_are_prepared_in_the_workdir(tiny, tmp_path):
    """Preparation has its own lock, possibly in the same folder; a run must not wait for itself."""
    tiny.data.dir, tiny.steps, tiny.eval_every, tiny.checkpoint_every = str(tmp_path / "run"), 3, 0, 0
    assert train(tiny, tmp_path / "run")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_killed_holds_nothing(how, tiny, tmp_path, monkeypatch):
    """The file of the killed process stays, and the next run takes the lock at once."""
    process = holder(tmp_path)
    with pytest.raises(ConfigError, match=rf"process {process.pid} on "), locks.alone(tmp_path, "trains"):
        pass
    process.send_signal(how)
    process.wait()
    assert str(process.pid) in (tmp_path / ".run.lock").read_text()
    monkeypatch.setattr(locks, "_SECONDS", 0.0)
    with locks.alone(tmp_path, "trains"):
        assert f'"process": {os.getpid()}' in (tmp_path / ".run.lock").read_text()


def test_a_folder_that_was_made_for_the_lock_goes_with_it(tmp_path):
    with locks.alone(tmp_path / "a" / "b", "trains"):
        assert (tmp_path / "a" / "b" / ".run.lock").exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with locks.alone(tmp_path / "a", "trains"):
        pass
    with locks.alone(tmp_path / "b" / "c", "trains"):
        (tmp_path / "b" / "c" / "more").write_text("")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("more")) == ["b/c/more"]
    assert (tmp_path / "a").exists() and not list((tmp_path / "a").iterdir())


def test_who_waited_for_a_file_that_is_gone_locks_the_new_one(tmp_path, monkeypatch):
    """Otherwise a third process could lock a new file of the same name, and two would hold the lock."""
    take, times = fcntl.flock, []

    def late(descriptor, how):
        times.append(1)
        if len(times) == 1:  # the previous holder ends and removes its file
            (tmp_path / ".run.lock").unlink()
        take(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with locks.alone(tmp_path, "trains"):
        assert len(times) == 2 and (tmp_path / ".run.lock").exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.alone(tmp_path, "trains"):
        pass
    assert re.search(
        r"note: the file system of .* has no locks .*, so a second run in this folder would not",
        capsys.readouterr().err,
    )


def test_a_holder_that_has_not_said_who_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_SECONDS", 0.0)
    with locks.alone(tmp_path, "trains"):
        (tmp_path / ".run.lock").write_text("{")
        with pytest.raises(ConfigError, match="an unknown process is at work in"), locks.alone(tmp_path, "trains"):
            pass


def test_a_folder_that_can_not_be_made():
    with (
        pytest.raises(ConfigError, match=r"/proc/x/\.run\.lock can't be created or opened"),
        locks.alone(Path("/proc/x"), "trains"),
    ):
        pass
