"""Evaluations without held-out data are refused; an evaluation that fails loses no steps."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from launch.answers import held_out
from launch.program.checking import ConfigError
from launch.train import train
from tests.launch.conftest import refused
from tests.launch.test_train import final
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics


def test_without_a_validation_share_evaluations_are_refused_before_data_are_prepared(tiny, tmp_path):
    tiny.data.update(validation=0.0, dir=str(tmp_path / "data"))
    refused(tiny, tmp_path / "run", ConfigError, "config.data.validation is 0", "config.eval_every 4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", ["tfds:a/b", "tfds[text]:a/b"])
def test_sources_with_their_own_splits_need_no_validation_share(spec, tiny):
    tiny.data.update(validation=0.0, sources=((spec, 1.0),))
    held_out.check(tiny)


@pytest.mark.parametrize(("rows", "every", "says"), [((0, 0), 4, True), ((0, 1), 4, False), ((0, 0), 0, False)])
def test_sources_that_hold_nothing_out_are_refused_before_programs_are_compiled(rows, every, says, tiny, tmp_path):
    """Sources may come with a validation split that is empty, which is known only after reading them."""
    tiny.eval_every = every
    source = lambda count: SimpleNamespace(validation_rows=count, channels=("tokens",))
    prepared = SimpleNamespace(directory=tmp_path, sources=[source(count) for count in rows])
    words = "nothing is held out in .* config.eval_every 4.* config.eval_every=0"
    with pytest.raises(ConfigError, match=words) if says else contextlib.nullcontext():
        held_out.check_held_out(tiny, prepared)


def test_without_evaluations_nothing_has_to_be_held_out(tiny, tmp_path):
    tiny.data.validation, tiny.eval_every, tiny.steps = 0.0, 0, 3
    assert train(tiny, tmp_path)
    assert Checkpoints(tmp_path).latest_step == 3


@pytest.mark.parametrize("failing", [4, 8])
@pytest.mark.parametrize("error", [ValueError("odd text"), OSError(5, "Input/output error")], ids=type)
def test_an_evaluation_that_fails_loses_no_steps(failing, error, tiny, uninterrupted, tmp_path, monkeypatch, capsys):
    """In the middle of a run and at its end, the state is saved; the same command continues to the same parameters."""
    whole = uninterrupted(tiny)
    tiny.checkpoint_every = 100
    make = held_out.Evaluation

    def broken(*arguments):
        evaluate, calls = make(*arguments), []

        def run(*given):
            calls.append(1)
            if len(calls) == failing / 4:
                raise error
            return evaluate(*given)

        return run

    monkeypatch.setattr(held_out, "Evaluation", broken)
    capsys.readouterr()
    with pytest.raises(type(error)) as caught:
        train(tiny, tmp_path)
    assert caught.value is error
    assert (
        f"step {failing}: the evaluation failed ({type(error).__name__}); the step is saved" in capsys.readouterr().out
    )
    assert Checkpoints(tmp_path).latest_step == failing
    events = [
        row["event"] for row in metrics.read(tmp_path / "metrics.jsonl") if "evaluation_failed" in row.get("event", {})
    ]
    assert events == [{"evaluation_failed": str(error)}]
    monkeypatch.setattr(held_out, "Evaluation", make)
    assert train(tiny, tmp_path)
    for one, other in zip(final(tiny, whole)[0], final(tiny, tmp_path)[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_error_of_an_evaluation_is_raised_even_if_the_save_fails_too(tiny, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("odd text")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(held_out, "Evaluation", lambda *_: broken)
    monkeypatch.setattr(Checkpoints, "save", full)
    refused(tiny, tmp_path, ValueError, "odd text")
    assert "and so did the save after it: [Errno 28] No space left on device" in capsys.readouterr().out
