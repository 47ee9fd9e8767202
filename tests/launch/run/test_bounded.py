"""Runs whose best evaluation is chosen within a bound on a second metric. Their figures are scripted."""

import json
import os
import signal

import pytest

from launch.answers import safety
from launch.program.checking import ConfigError
from launch.train import train
from tests.launch.conftest import refused
from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.record import metrics

ANSWERED, REFUSED = "validation/harmful_answered", "validation/over_refusal"


def not_best(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    return {row["step"]: row["not_best"]["why"] for row in rows if "not_best" in row}


def best(workdir):
    return Checkpoints(workdir, metric=ANSWERED, reading=True).find("best")


def scripted(pairs):
    """Returns a stand-in for safety.evaluation_of, whose evaluations have these figures one after another."""
    left = iter(pairs)
    return lambda *_: lambda model: dict(zip((ANSWERED, REFUSED), next(left), strict=True))


def gated(tiny, **fields):
    tiny.steps, tiny.eval_every, tiny.checkpoint_every, tiny.keep_last, tiny.log_every = 10, 2, 2, 1, 100
    tiny.early_stopping.update(metric=ANSWERED, bounded=REFUSED, bound=0.1, **fields)
    return tiny


RISING = [(0.9, 0.0), (0.8, 0.0), (0.4, 0.1), (0.1, 0.3), (0.0, 0.6), (0.0, 1.0)]  # first that of step 0


def test_the_best_is_the_one_before_over_refusal_rose(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(safety, "evaluation_of", scripted(RISING))
    assert train(gated(tiny), tmp_path / "run")
    assert best(tmp_path / "run") == 4
    assert not_best(tmp_path / "run") == {step: f"{REFUSED} {x} > 0.1" for step, x in ((6, 0.3), (8, 0.6), (10, 1))}
    said = capsys.readouterr().out
    assert "step 6: not best: over_refusal 0.3 > 0.1" in said
    assert f"Best: step 4, {ANSWERED} 0.4, while {REFUSED} <= 0.1" in said
    # Without a bound, the model that refuses everything would be the best.
    monkeypatch.setattr(safety, "evaluation_of", scripted(RISING))
    config = gated(tiny)
    config.early_stopping.update(bounded="", bound=0.0)
    assert train(config, tmp_path / "free") and best(tmp_path / "free") == 8 and not not_best(tmp_path / "free")


def test_a_model_that_refuses_everything_is_never_the_best(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(safety, "evaluation_of", scripted([(0.0, 1.0)] * 6))
    assert train(gated(tiny), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["best"] is None
    assert "No checkpoint is the best one: " in (tmp_path / "report.html").read_text()
    assert f"No checkpoint is the best one: {REFUSED} <= 0.1 held in no evaluation" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="holds no step 'best'"):
        best(tmp_path)


def test_early_stopping_counts_evaluations_beyond_the_bound_as_waiting(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(safety, "evaluation_of", scripted(RISING))
    assert train(gated(tiny, patience=2), tmp_path)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if ANSWERED in row] == [0, 2, 4, 6, 8] and best(tmp_path) == 4
    assert Checkpoints(tmp_path, metric=ANSWERED, reading=True).find() == 4  # what programs read of such a run


def test_a_resumed_run_keeps_the_gate(tiny, tmp_path, monkeypatch):
    """Stopped after an evaluation beyond the bound, it ends like an uninterrupted run, and says nothing twice."""
    stop = lambda step, _: step == 6 and os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(safety, "evaluation_of", scripted(RISING[:4]))
    assert not train(gated(tiny), tmp_path, observe=stop)
    monkeypatch.setattr(safety, "evaluation_of", scripted(RISING[4:]))
    other = gated(tiny).copy_and_resolve_references()
    other.early_stopping.bound = 0.5
    refused(other, tmp_path, ConfigError, "early_stopping.bound: 0.1 there, 0.5 now")
    assert train(gated(tiny), tmp_path)
    assert best(tmp_path) == 4 and list(not_best(tmp_path)) == [6, 8, 10]
    assert json.loads((tmp_path / "summary.json").read_text())["best"]["step"] == 4
