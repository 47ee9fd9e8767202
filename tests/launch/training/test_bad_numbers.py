"""Batches that give bad updates are skipped, recorded in metrics.jsonl, and passed by a roll-back."""

import zlib

import numpy as np
import pytest

from launch.run import build
from launch.train import train
from train import loop
from train.record import metrics


@pytest.fixture
def poisoned(tiny, monkeypatch):
    """Returns poison(steps, workdir), which trains a run there. From then on the batches of its steps `steps` have
    weights of NaN whenever they are read."""
    tiny.update(steps=16, checkpoint_every=4, eval_every=0, max_bad_steps=2)
    seen, bad, make = [], set(), build.put

    def put(mesh):
        inner = make(mesh)

        def one(batch):
            key = zlib.crc32(batch["tokens"].tobytes())
            seen.append(key)
            if key in bad:
                batch = batch | {"weights": np.full_like(batch["weights"], np.nan)}
            return inner(batch)

        return one

    monkeypatch.setattr(build, "put", put)

    def poison(steps, workdir):
        train(tiny, workdir)
        bad.update(seen[step - 1] for step in steps)
        assert len(set(seen)) == 16

    return poison


def rows_of(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    events = [row["event"] | {"step": row["step"]} for row in rows if "event" in row]
    return [event for event in events if "start" not in event], rows


def test_each_skipped_update_is_recorded_with_its_rows(tiny, poisoned, tmp_path, capsys):
    poisoned([3, 6], tmp_path / "clean")
    train(tiny, tmp_path / "run")
    events, rows = rows_of(tmp_path / "run")
    assert [(event["step"], event["left_out"]) for event in events] == [(3, "not finite"), (6, "not finite")]
    assert [event["position"]["next_row"] for event in events] == [2 * tiny.batch_size, 5 * tiny.batch_size]
    assert [row["skipped"] for row in rows if "loss" in row] == [0, 0, *[1] * 3, *[2] * 11]
    assert "step 3: update skipped, not finite" in capsys.readouterr().out


def test_a_run_rolls_back_past_the_bad_data(tiny, poisoned, tmp_path, capsys):
    """Steps 10 and 11 of the stream cause a roll-back to checkpoint 8; then steps 9 to 16 read the data after them."""
    poisoned([10, 11], tmp_path / "clean")
    tiny.on_bad_steps = "roll_back"
    train(tiny, tmp_path / "run")
    events, rows = rows_of(tmp_path / "run")
    assert [event["step"] for event in events if "left_out" in event] == [10, 11]
    (event,) = [event for event in events if "rolled_back" in event]
    assert (event["step"], event["from_step"]) == (8, 11) and "steps 10 to 11 were all skipped" in event["rolled_back"]
    assert event["position"]["next_row"] == 11 * tiny.batch_size
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 17))
    assert all(row["loss"] is not None and row["skipped"] == 0 for row in rows if "loss" in row)
    assert "rolled back to step 8: the updates of steps 10 to 11 were all skipped" in capsys.readouterr().out


def test_a_run_that_rolls_back_again_and_again_stops(tiny, poisoned, tmp_path):
    tiny.on_bad_steps, tiny.steps, tiny.optimizer.learning_rate, tiny.optimizer.clip_norm = "roll_back", 30, 1e30, 0.0
    words = r"rolled back to step \d+ 3 times before\. Look at the data from row [\d,]+ of the stream"
    with pytest.raises(loop.TrainingStopped, match=words):
        train(tiny, tmp_path / "run")
