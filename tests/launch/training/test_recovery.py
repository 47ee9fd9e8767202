"""Damaged checkpoints are named and set aside, and nothing else is lost."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from launch.program.checking import ConfigError
from launch.run import workdirs
from launch.train import train
from launch.training import recovery
from tests.launch.conftest import refused, started
from tests.launch.test_train import assert_same_run
from tests.train.checkpoints.test_manifest import flip
from train.checkpoints import manifest
from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.record import metrics


@pytest.fixture
def run(tiny, uninterrupted, tmp_path):
    return shutil.copytree(uninterrupted(tiny), tmp_path / "run")


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_run_continues_from_the_newest_intact_checkpoint(tiny, uninterrupted, run, capsys):
    """One has a flipped bit, which Orbax does not notice; one is an empty folder, which Orbax takes for a step."""
    weights = largest(run / "checkpoints" / "8" / "model")
    flip(weights, weights.stat().st_size // 2)
    (run / "checkpoints" / "12").mkdir()
    train(tiny, run)
    said = capsys.readouterr().out
    aside = lambda step: f"checkpoint {step} is damaged and was set aside as {run / 'damaged' / step}:\n  "
    assert f"{aside('12')}manifest.json is missing" in said
    name = weights.relative_to(run / "checkpoints" / "8").as_posix()
    assert f"{aside('8')}{name} has other bytes" in said
    assert "continuing" in said and "after step 4" in said
    assert_same_run(tiny, uninterrupted(tiny), run)
    assert manifest.problems(run / "damaged" / "8") != [] == manifest.problems(run / "checkpoints" / "8")
    flip(largest(run / "checkpoints" / "8" / "training"), 0)
    recovery.settle(run, "full")
    assert {path.name for path in (run / "damaged").iterdir()} == {"8", "8.2", "12"}


@pytest.mark.parametrize("part", ["model", "training", "loop", "metrics"])
@pytest.mark.parametrize("fault", ["flip", "cut", "gone", "more"])
def test_damage_of_any_file_is_found(run, part, fault, capsys):
    """The largest file of each part of a step is damaged in each way."""
    file = largest(run / "checkpoints" / "8" / part)
    if fault == "flip":
        flip(file, -1)
    elif fault == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif fault == "gone":
        file.unlink()
    else:
        file.with_name("more").write_bytes(b"")
    shown = file.with_name("more") if fault == "more" else file
    name = shown.relative_to(run / "checkpoints" / "8").as_posix()
    with pytest.raises(CheckpointError, match=rf"checkpoint 8 .* is damaged: {name} .*launch\.checkpoints"):
        Checkpoints(run, reading=True).loop()
    lines, good = recovery.listed(run, verify=True)
    assert not good and name in lines[-2] and "every byte as written" in lines[-3] and lines[-1].startswith("read ")
    recovery.settle(run, "full")
    assert workdirs.steps(run) == [4]
    assert name in capsys.readouterr().out
    lines, good = recovery.listed(run, verify=True)
    assert good and "set aside" in lines[1]


def test_without_an_intact_checkpoint_nothing_is_lost(tiny, run):
    """A run does not start over by itself, nor if the command is given again."""
    for step in ("4", "8"):
        (run / "checkpoints" / step / manifest.NAME).unlink()
    curve = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        refused(tiny, run, CheckpointError, "no intact checkpoint is left", str(run / "damaged"), "another --workdir")
    assert (run / "metrics.jsonl").read_bytes() == curve
    (run / "damaged" / "8").rename(run / "checkpoints" / "8")
    manifest.write(run / "checkpoints" / "8")
    train(tiny, run)


def test_a_file_that_cannot_be_read_does_not_count_as_damaged(tiny, run, monkeypatch, capsys):
    """A network disk may fail for a moment; a missing permission gives an OSError too."""
    weights, opened = largest(run / "checkpoints" / "8" / "model"), Path.open

    def failing(self, *arguments, **more):
        if self == weights:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return opened(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", failing)
    refused(tiny, run, CheckpointError, f"{weights}: Input/output error", "nothing was set aside")
    lines, good = recovery.listed(run, verify=True)
    assert not good and f"can't be read: Input/output error ({weights})" in lines[-2]
    with pytest.raises(CheckpointError, match="Input/output error"):
        Checkpoints(run, reading=True).loop()
    monkeypatch.undo()
    assert workdirs.steps(run) == [8, 4] and not (run / "damaged").exists()


@pytest.mark.parametrize("level", ["full", "off"])
def test_entries_that_are_not_steps(tiny, run, level, capsys):
    """An empty folder is set aside at any level of verification, and a file is ignored."""
    (run / "checkpoints" / "50").mkdir()
    (run / "checkpoints" / "60").write_text("")
    tiny.verify_checkpoints = level
    assert train(tiny, run)
    said = capsys.readouterr().out
    assert "checkpoint 50 is damaged and was set aside" in said and "is done: 8 steps" in said


def test_an_unknown_level(tiny, tmp_path):
    tiny.verify_checkpoints = "some"
    refused(tiny, tmp_path / "run", ConfigError, "config.verify_checkpoints is 'some'", "full, sampled, off")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("on_bad_steps", "rollback", "choose from stop, roll_back"),
        ("max_bad_steps", 0, "at least 1"),
        ("check_every", -1, "at least 0"),
        ("spike", -1.0, "at least 0"),
        ("keep_last", 0, "at least 1"),
        ("watchdog.seconds", -5.0, "at least 0"),
        ("watchdog.barrier", 0.0, "at least 1"),
    ],
)
def test_invalid_values_are_refused(tiny, tmp_path, field, value, words):
    tiny.update_from_flattened_dict({field: value})
    refused(tiny, tmp_path / "run", ConfigError, f"config.{field} is {value!r}", words)


def test_a_workdir_without_its_config(tiny, run):
    """Another run must not continue from its checkpoints."""
    (run / "config.json").unlink()
    refused(tiny, run, ConfigError, "checkpoints but no config.json", "new --workdir")
    assert not (run / "config.json").exists()


def test_text_that_has_changed(tiny, corpus, tmp_path):
    """The run is refused, and its own tokenizer and records stay as they are."""
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text())
    tiny.data.update(sources=((f"files:{text}", 1.0),), dir=str(tmp_path / "data"))
    tiny.data.tokenizer.update(kind="bpe", vocab_size=280)
    tiny.steps, workdir = 4, tmp_path / "run"
    train(tiny, workdir)
    own = [workdir / name for name in ("tokenizer.json", "data.json", "config.json")]
    before = [path.read_bytes() for path in own]
    text.write_text("something else, " * 500)
    refused(tiny, workdir, ConfigError, f"files:{text} has other content than when the run", "new --workdir")
    assert [path.read_bytes() for path in own] == before


def test_killed_before_its_report(tiny, run, capsys):
    (run / "report.html").unlink()
    assert train(tiny, run)
    assert (run / "report.html").exists() and f"report: {run / 'report.html'}" in capsys.readouterr().out
    train(tiny, run)
    assert "report:" not in capsys.readouterr().out


def test_a_damaged_summary(tiny, run):
    (run / "summary.json").write_text((run / "summary.json").read_text()[:50])
    shutil.rmtree(run / "checkpoints" / "8")
    assert train(tiny, run)
    assert json.loads((run / "summary.json").read_text())["model"]["parameters"] > 0


def test_what_was_set_aside_is_in_the_metrics(tiny, run):
    flip(largest(run / "checkpoints" / "8" / "loop"), 0)
    train(tiny, run)
    events = [row["event"] for row in metrics.read(run / "metrics.jsonl") if "set_aside" in row.get("event", {})]
    assert len(events) == 1 and events[0]["set_aside"] == 8 and "has other bytes" in events[0]["why"][0]


def test_a_process_whose_saves_fail_ends(tiny, tmp_path):
    """From step 6 on, no file may grow beyond 3 kB. Orbax's threads block forever then; the process still ends."""
    program = """
import resource
from absl import flags
from launch.program import runtime
from launch import train
from train import loop
from train.checkpoints import saves

def crowded(state, step, saved, schedule, parts, run=loop.train):
    read, calls = parts.source.next, []
    def one(state):
        calls.append(1)
        if len(calls) == 6:
            parts.checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        return read(state)
    parts.source.next = one
    return run(state, step, saved, schedule, parts)

loop.train, saves._SECONDS_BETWEEN = crowded, 0.1
flags.mark_flags_as_required(["config", "workdir"])
runtime.run(train.main)
"""
    tiny.steps, tiny.eval_every = 30, 0
    done = started(program, tiny, tmp_path / "run")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: could not write checkpoint 30") and "last complete one is step 4" in last, last
    said = re.findall(r"step (\d+): could not .*next attempt after step (\d+)", done.stdout)
    tries = [tuple(map(int, found)) for found in said]
    assert [again - step for step, again in tries][:3] == [1, 2, 4], tries
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]


def test_a_run_that_hangs_ends(tiny, tmp_path):
    """Its data block after step 5. The run is a process of its own, because the watchdog ends the process."""
    tiny.steps, tiny.eval_every = 100, 0
    tiny.watchdog.update(seconds=0.5, first_seconds=60.0, end_after=0.5)
    program = """
import threading
from absl import flags
from launch.program import runtime
from launch import train
from train import loop

def hanging(state, step, saved, schedule, parts, run=loop.train):
    read, calls = parts.source.next, []
    def waits(state):
        calls.append(1)
        return read(state) if len(calls) <= 5 else threading.Event().wait()
    parts.source.next = waits
    return run(state, step, saved, schedule, parts)

loop.train = hanging
flags.mark_flags_as_required(["config", "workdir"])
runtime.run(train.main)
"""
    done = started(program, tiny, tmp_path / "run")
    assert done.returncode == 1
    assert "no progress: 'data' has taken" in done.stderr and "in waits" in done.stderr
    assert "error: 'data' hangs" in done.stderr.splitlines()[-1]
    assert workdirs.steps(tmp_path / "run") == [4]
