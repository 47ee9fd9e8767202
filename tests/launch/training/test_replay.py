"""A step of a run is repeated."""

import re

import numpy as np
import pytest

from data.tokens import tokenizer
from launch.program.checking import ConfigError
from launch.run import build
from launch.train import train
from launch.training import replay
from train.record import metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints 8 and 16, which was rolled back to 8 and continued after two batches of NaN. So its step
    12 reads the 15th batch of the stream. The first test that uses it makes it."""
    workdir, seen = tmp_path_factory.mktemp("replayed") / "run", []

    def make(config, monkeypatch):
        config.steps, config.checkpoint_every, config.eval_every = 16, 8, 0
        config.on_bad_steps, config.max_bad_steps = "roll_back", 2
        put = build.put

        def poisoned(mesh):
            whole = put(mesh)

            def one(batch):
                seen.append(batch)
                bad = len(seen) in (10, 11)
                return whole(batch | {"weights": batch["weights"] * np.float32("nan")} if bad else batch)

            return one

        if not workdir.exists():
            monkeypatch.setattr(build, "put", poisoned)
            train(config, workdir)
            monkeypatch.setattr(build, "put", put)
        return workdir, seen

    return make


def figures(text):
    return dict(re.findall(r"^(loss|grad_norm) +([\d.e+-]+)$", text, re.MULTILINE))


@pytest.mark.parametrize("step", [3, 9, 12, 16])
def test_a_repeated_step_gives_the_recorded_figures(tiny, finished, monkeypatch, capsys, step):
    """Loss, gradient norm and rows are the same, from the start of the run and from checkpoint 8, before and after the
    data that the roll-back skipped."""
    workdir, seen = finished(tiny, monkeypatch)
    capsys.readouterr()
    before = (workdir / "metrics.jsonl").read_bytes()
    replay.show(tiny, workdir, (), step)
    said = capsys.readouterr().out
    (row,) = [row for row in metrics.read(workdir / "metrics.jsonl") if row["step"] == step and "loss" in row]
    found = figures(said)
    assert float(found["loss"]) == pytest.approx(row["loss"], rel=1e-5)  # six digits are shown
    assert float(found["grad_norm"]) == pytest.approx(row["grad_norm"], rel=1e-5)
    assert f"recorded       loss {row['loss']:.6g}" in said
    text = (workdir / "replay" / f"{step}.txt").read_text()
    # Batches 9 to 12 were seen before the roll-back (the 12th was already put when the results of 10 and 11 were read).
    batch = seen[step - 1 if step <= 8 else step + 3]
    tokens = tokenizer.load(workdir / "tokenizer.json")
    words = [tokens.decode(ids) for ids in batch["tokens"]]
    assert len(words) == tiny.batch_size and all(word.strip() in text for word in words)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert (f"to {step - 1} are repeated" in said) == (step not in (1, 9))


def test_norms_by_parameter(tiny, finished, monkeypatch, capsys):
    """The squares of the norms sum to the square of the global norm, and the mean loss of the rows is the loss."""
    workdir, _ = finished(tiny, monkeypatch)
    capsys.readouterr()
    replay.show(tiny, workdir, (), 5)
    said = capsys.readouterr().out
    norms = [float(norm) for norm in re.findall(r"^\S+/\S+ +([\d.]+e[+-]\d+) ", said, re.MULTILINE)]
    assert len(norms) > 8 and norms == sorted(norms, reverse=True)
    assert np.sqrt(np.square(norms).sum()) == pytest.approx(float(figures(said)["grad_norm"]), rel=1e-3)
    text = (workdir / "replay" / "5.txt").read_text()
    heads = re.findall(r"^== row \d+ of the batch, row \d+ of fox_txt, loss ([\d.]+)$", text, re.MULTILINE)
    losses = [float(loss) for loss in heads]
    assert len(losses) == tiny.batch_size  # every row is full, so all have the same weight
    assert np.mean(losses) == pytest.approx(float(figures(said)["loss"]), abs=1e-4)


def test_a_step_that_was_not_finite(tiny, finished, tmp_path, monkeypatch, capsys):
    """A learning rate ruins the model; the repeated step shows this, and the norm of the skipped update."""
    tiny.optimizer.update(learning_rate=1e30, clip_norm=0.0, warmup_steps=0, schedule="constant")
    tiny.steps, tiny.checkpoint_every, tiny.eval_every = 4, 1, 0
    train(tiny, tmp_path / "run")
    capsys.readouterr()
    replay.show(tiny, tmp_path / "run", (), 4)
    said = capsys.readouterr().out
    assert "update         skipped: not finite" in said and "recorded       skipped: not finite" in said
    assert re.search(r"nan .* not finite$", said, re.MULTILINE)


def test_nothing_to_replay(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"--replay: .* holds no run with a checkpoint"):
        replay.show(tiny, tmp_path, (), 3)


def test_a_step_that_was_not_done(tiny, finished, monkeypatch):
    workdir, _ = finished(tiny, monkeypatch)
    with pytest.raises(ConfigError, match=r"--replay=17: .* has done only 16 steps"):
        replay.show(tiny, workdir, (), 17)
