"""Tests runs that end early: at which step, which checkpoints they keep, and which one is then read."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from absl import flags

from launch import convert, sweep
from launch.program.checking import ConfigError
from launch.run import restore
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import refused
from tests.launch.test_train import assert_same_run
from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.early_stopping import UnknownMetric
from train.record import metrics


@pytest.fixture
def ruined(tiny):
    """A config whose learning rate ruins the model after a few steps; it saves only its best evaluations."""
    tiny.steps, tiny.eval_every, tiny.checkpoint_every, tiny.keep_last = 40, 2, 1000, 1
    tiny.optimizer.update(schedule="constant", learning_rate=0.3, warmup_steps=0)
    tiny.early_stopping.patience, tiny.log_every = 3, 1000
    return tiny


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("early") / "run"

    def make(config):
        if not workdir.exists():
            assert train(config, workdir)
        return workdir

    return make


def validation(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    return {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}


def kept(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}


def test_ends_after_three_evaluations_without_a_better_one(ruined, ended, capsys):
    workdir = ended(ruined)
    losses = validation(workdir)
    best = min(losses, key=losses.get)
    assert max(losses) == best + 3 * ruined.eval_every < ruined.steps
    assert kept(workdir) == {best, best + 6}
    (logged,) = (row for row in metrics.read(workdir / "metrics.jsonl") if "loss" in row)
    assert logged["step"] == best + 6  # the last logging window, although it is incomplete
    words = f"validation/loss was best at step {best} ({losses[best]:.4g})"
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["best"] == {"metric": "validation/loss", "value": losses[best], "step": best}
    assert words in summary["ended"] and words in (workdir / "report.html").read_text()
    files = lambda: sorted((str(path), path.stat().st_mtime_ns) for path in (workdir / "checkpoints").rglob("*"))
    before = files()
    capsys.readouterr()
    assert train(ruined, workdir)
    assert words in capsys.readouterr().out
    assert before == files() and validation(workdir) == losses


def test_counts_on_after_a_stop(ruined, ended, tmp_path):
    """A run that a signal stops while it waits for a better evaluation ends like an uninterrupted one."""
    whole = ended(ruined)
    at = Checkpoints(whole).find("best") + ruined.eval_every
    interrupt = lambda step, _: step == at and os.kill(os.getpid(), signal.SIGTERM)
    assert not train(ruined, tmp_path / "stopped", observe=interrupt)
    assert Checkpoints(tmp_path / "stopped").latest_step == at
    assert train(ruined, tmp_path / "stopped")
    assert_same_run(ruined, whole, tmp_path / "stopped")
    assert validation(whole) == validation(tmp_path / "stopped") and kept(whole) == kept(tmp_path / "stopped")


def test_more_patience_trains_on(ruined, ended, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(ended(ruined), workdir)
    before = validation(workdir)
    ruined.early_stopping.patience = 4
    assert train(ruined, workdir)
    assert validation(workdir).items() > before.items()


def test_what_is_read_of_a_run_that_ended_early(ruined, ended, tmp_path, capsys):
    """The best step is read, with a note, unless another one is requested."""
    workdir = ended(ruined)
    best, last = sorted(kept(workdir))
    arrays = {}
    for wanted in ("", "best", "latest", str(best), str(last)):
        model = restore.for_inference(Workdir(workdir), step=wanted)[1]
        arrays[wanted] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model)])
        said = f"reading step {best}, the best by validation/loss; the latest is {last}" in capsys.readouterr().err
        assert said == (wanted in ("", "best"))
    np.testing.assert_array_equal(arrays[""], arrays["best"])
    np.testing.assert_array_equal(arrays["best"], arrays[str(best)])
    np.testing.assert_array_equal(arrays["latest"], arrays[str(last)])
    assert not np.array_equal(arrays["best"], arrays["latest"])
    with pytest.raises(CheckpointError, match=rf"no step '7'; there are: {best}, {last}"):
        restore.for_inference(Workdir(workdir), step="7")


def test_help_shows_flags_that_other_files_define():
    """--help lists the key flags of the program's own file."""
    key = lambda module: {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}
    assert {"from_hf", "step"} <= key(convert)
    assert {"search", "config", "workdir"} <= key(sweep)


def test_mistakes_are_found_early(tiny, tmp_path):
    def changed(**fields):
        config = tiny.copy_and_resolve_references()
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        return config

    refused(changed(early_stopping__metric="validation/unigram"), tmp_path / "a", ConfigError, "config.early_")
    refused(
        changed(early_stopping__patience=-1), tmp_path / "a", ConfigError, "it must be a whole number of at least 0"
    )
    for field in ("eval_every", "keep_best"):
        config = changed(early_stopping__patience=2, **{field: 0})
        refused(config, tmp_path / "a", ConfigError, "patience 2 needs", f"config.{field} (now 0)")
    assert not (tmp_path / "a").exists()
    config = changed(early_stopping__metric="validation/accuracy", eval_every=1)
    refused(config, tmp_path / "b", UnknownMetric, "'validation/accuracy'", "validation/loss, validation/perplexity")
    # It fails before the first step, so nothing is lost and the same workdir accepts another config.
    assert not validation(tmp_path / "b") and not (tmp_path / "b" / "report.html").exists()
    assert train(changed(steps=1, eval_every=1, optimizer__warmup_steps=0), tmp_path / "b")
    assert validation(tmp_path / "b").keys() == {1}
