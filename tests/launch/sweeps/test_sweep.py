"""Sweeps: the same results after an interruption at any moment, bad trials, and what is kept and shown.

Trials here only pretend to train (`pretend`): a formula gives their evaluations, which are saved as a run would save
them. The tests of real trials are in test_sweep_runs.py.
"""

import gc
import math

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from data.batch import DataError
from data.prepare import prepare
from launch import sweep
from launch.program.checking import ConfigError
from launch.run import build, locks
from launch.sweeps import search, trials
from launch.sweeps.trials import Trials
from train.early_stopping import value_of
from train.loop import TrainingStopped
from train.report.sweep_report import ranked

SPACE = {
    "optimizer.learning_rate": ("log", 1e-4, 1.0),
    "optimizer.weight_decay": ("float", 0.0, 0.4, 0.1),
    "optimizer.name": ("choice", "adamw", "lion"),
}


class Killed(BaseException):
    """Simulates the end of the process."""


def loss(config, step):
    """Returns a loss that is lowest at a learning rate of 1e-2 without weight decay."""
    o = config.optimizer
    return abs(math.log10(o.learning_rate) + 2) + o.weight_decay + 10 / step + (o.name == "lion") * 0.1


def pretend(kill=None):
    """Returns a replacement for launch.train.train. `kill`: (trial, step) before which the process ends. A negative
    step means: after its evaluation is reported, before it is saved."""

    def train(config, workdir, chosen, observe):
        workdir.mkdir(parents=True, exist_ok=True)
        saved = workdir / "checkpoints" / "step"
        at = int(saved.read_text()) if saved.exists() else 0
        for step in range(at + config.eval_every, config.steps + 1, config.eval_every):
            if kill == (int(workdir.name), step):
                raise Killed
            value = loss(config, step)
            observe(step, {"validation/loss": value, "validation/accuracy": -value})
            if kill == (int(workdir.name), -step):  # reported, not saved
                raise Killed
            saved.parent.mkdir(exist_ok=True)
            saved.write_text(str(step))
        return True

    return train


@pytest.fixture
def config(tiny):
    tiny.steps, tiny.eval_every = 20, 4
    gc.freeze()  # each trial begins with a garbage collection, which is slow with all modules of a test session
    yield tiny
    gc.unfreeze()


def write(config, folder):
    """Writes the config to a file and returns its path."""
    path = folder / "config.py"
    body = f"def get_config(argument=''):\n  return ConfigDict({config.to_dict()!r})\n"
    path.write_text(f"from ml_collections import ConfigDict\n{body}")
    return path


def reported(trials):
    return [(row.number, row.state, row.parameters, row.values) for row in trials.rows()]


@pytest.mark.parametrize(("sampler", "total"), [("random", 7), ("grid", 7), ("tpe", 12)])
def test_the_same_after_kills(sampler, total, config, tmp_path, monkeypatch):
    """Kills before a trial's first evaluation, between report and save, and in the middle of a trial change nothing.
    There are 12 trials with TPE, because its model starts after 10."""
    space = SPACE | ({"optimizer.learning_rate": ("choice", 1e-3, 1e-2)} if sampler == "grid" else {})
    make = lambda name: Trials(config, space, tmp_path / name, sampler)
    monkeypatch.setattr(trials, "train", pretend())
    whole = make("whole")
    assert whole.run(total)
    for kill in ((0, 4), (2, -12), (4, 16), (total - 1, -4)):
        monkeypatch.setattr(trials, "train", pretend(kill))
        with pytest.raises(Killed):
            make("killed").run(total)
    monkeypatch.setattr(trials, "train", pretend())
    killed = make("killed")
    assert killed.rows()[-1].state == "unfinished"
    assert killed.run(total)
    rows = reported(whole)
    assert reported(killed) == rows
    assert len(rows) == total and len({tuple(parameters.values()) for _, _, parameters, _ in rows}) == total
    assert sampler != "tpe" or "pruned" in {state for _, state, *_ in rows}
    monkeypatch.setattr(trials, "train", None)  # all trials are done, so nothing trains
    assert make("killed").run(total)


def test_a_bad_trial_is_pruned_and_a_grid_ends(config, tmp_path, monkeypatch, capsys):
    """Five trials of a grid have worse and worse rates; the sixth is worse than their median after a quarter of its
    steps."""
    monkeypatch.setattr(trials, "train", pretend())
    rates = (1e-2, 1.1e-2, 1.2e-2, 1.3e-2, 1.4e-2, 0.9)
    space = {"optimizer.learning_rate": ("choice", *rates)}
    made = Trials(config, space, tmp_path, "grid")
    made.points.sort(key=lambda point: point["optimizer.learning_rate"])
    assert made.run(100)
    rows = made.rows()
    assert [row.parameters["optimizer.learning_rate"] for row in rows] == list(rates)
    assert [row.state for row in rows] == ["complete"] * 5 + ["pruned"]
    assert max(rows[5].values) == 8 and rows[0].step == 20  # 8: the first evaluation after a quarter
    assert [row.number for row in ranked(rows, lower=True)] == [0, 1, 2, 3, 4, 5]
    assert "trial 5: pruned after step 8, " in capsys.readouterr().out
    kept = [path.parent.name for path in (tmp_path / "trials").glob("*/checkpoints")]
    assert kept == ["0"]  # only the best trial keeps checkpoints


def test_none_is_pruned_without_a_pruner_and_higher_may_be_better(config, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "train", pretend())
    config.early_stopping.metric = "validation/accuracy"
    made = Trials(config, SPACE, tmp_path, "random", "none")
    assert made.run(6)
    rows = made.rows()
    assert {row.state for row in rows} == {"complete"}
    best = ranked(rows, lower=False)[0]
    assert best.value == max(max(row.values.values()) for row in rows) == made.study.best_value
    assert best.number == made.study.best_trial.number


def test_failed_trials_do_not_end_a_sweep(config, tmp_path, monkeypatch):
    """One trial has bad losses and stops, and the evaluations of another are never finite."""

    def train(config, workdir, chosen, observe):
        if workdir.name == "1":
            raise TrainingStopped("steps 3 to 5 all gave a loss that is not finite")
        observe(4, {"validation/loss": math.nan if workdir.name == "2" else 1.0})
        return True

    monkeypatch.setattr(trials, "train", train)
    made = Trials(config, SPACE, tmp_path)
    assert made.run(4)
    assert [row.state for row in made.rows()] == ["complete", "failed", "failed", "complete"]
    assert made.rows()[1].why.startswith("steps 3 to 5") and made.rows()[2].why == "validation/loss was never finite"


def test_values_that_cannot_run_fail_their_trial(config, tmp_path, monkeypatch, capsys):
    """Single trials fail by a refused config, data that can't be prepared, and too little memory, and the sweep
    continues. Three failures in a row end it, and the same command continues it."""
    causes = {
        1: lambda: build.learning_rate(search.applied(config, {"optimizer.warmup_steps": 1000})),
        2: lambda: prepare({"sources": (), "seq_len": 8, "tokenizer": {"kind": "byte"}}, tmp_path / "data"),
        4: lambda: jnp.zeros(1 << 46, jnp.float32),
        **dict.fromkeys((5, 6, 7), lambda: value_of("validation/mse", {"validation/loss": 1.0})),
    }

    def train(config, workdir, *rest):
        causes.get(int(workdir.name), lambda: None)()
        return pretend()(config, workdir, *rest)

    monkeypatch.setattr(trials, "train", train)
    make = lambda: Trials(config, SPACE, tmp_path / "sweep", pruner="none")
    with pytest.raises(ConfigError, match=r"^trial 6 \(optimizer.* nor could the 2 before it: config.early_stopping"):
        make().run(10)
    rows = make().rows()
    assert [row.number for row in rows if row.state == "failed"] == [1, 2, 4, 5, 6]
    assert [row.number for row in rows if row.state == "complete"] == [0, 3]
    for number, words in (1, "warmup_steps is 1000"), (2, "data.sources is empty"), (4, "RESOURCE_EXHAUSTED: Out of m"):
        assert words in rows[number].why
    shown = capsys.readouterr().out
    assert (
        "trial 1: failed, no value (config: optimizer.warmup_steps is 1000, but" in shown and "; best: trial 0" in shown
    )
    assert make().run(10)
    assert [row.state for row in make().rows()[7:]] == ["failed", "complete", "complete"]
    monkeypatch.setattr(trials, "train", lambda *_: 1 / 0)  # not a mistake of the user, so it is raised as it is
    with pytest.raises(ZeroDivisionError):
        make().run(11)
    assert make().rows()[-1].state == "unfinished"


def test_the_memory_of_a_trial_is_free_when_the_next_one_begins(config, tmp_path, monkeypatch):
    """Arrays in a reference cycle, as real trials leave, stay on the device until Python's garbage collection."""
    found = []

    def train(config, workdir, chosen, observe):
        found.append(sum(array.shape == (12345,) for array in jax.live_arrays()))
        circle = [jnp.zeros(12345)]
        circle.append(circle)
        return pretend()(config, workdir, chosen, observe)

    monkeypatch.setattr(trials, "train", train)
    gc.disable()
    try:
        Trials(config, SPACE, tmp_path).run(3)
    finally:
        gc.enable()
    assert found == [0, 0, 0]


def test_the_ends_of_a_space_are_checked_first(config, tmp_path):
    """Nothing is written. The config's own value of a searched field does not matter."""
    config.optimizer.warmup_steps, config.accumulate = 1000, 4
    for space, words in (
        ({"optimizer.warmup_steps": ("int", 2, 1000)}, "trial with optimizer.warmup_steps 1000 cannot run: config: "),
        ({"optimizer.warmup_steps": ("choice", 2, 1000, 4)}, "trial with optimizer.warmup_steps 1000 cannot run"),
        ({"optimizer.warmup_steps": ("int", 2, 4), "batch_size": ("choice", 8, 6)}, "warmup_steps 2  batch_size 6"),
    ):
        with pytest.raises(ConfigError) as caught:
            Trials(config, space, tmp_path / "sweep")
        assert words in str(caught.value)
    config.data.sources = ()
    with pytest.raises(DataError, match=r"data\.sources is empty"):
        Trials(config, {"optimizer.warmup_steps": ("int", 2, 4)}, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_the_table_is_printed_before_an_error(config, tmp_path, monkeypatch, capsys):
    def train(*_):
        raise ConfigError("config.model.num_heads 3")

    monkeypatch.setattr(trials, "train", train)
    (tmp_path / "search.py").write_text(f"def get_search():\n  return {SPACE!r}\n")
    words = [f"--config={write(config, tmp_path)}", f"--search={tmp_path}/search.py", f"--workdir={tmp_path}/sweep"]
    with flagsaver.flagsaver(), pytest.raises(ConfigError, match="trial 0 "):
        flags.FLAGS(["sweep", *words])
        sweep.main()
    assert "\ntrial 0 failed: config.model.num_heads 3\n" in capsys.readouterr().out
    assert "config.model.num_heads 3" in (tmp_path / "sweep" / "sweep.html").read_text()


def test_a_signal_stops_and_more_trials_may_follow(config, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "train", lambda *_: False)
    assert not Trials(config, SPACE, tmp_path, "random").run(2)
    monkeypatch.setattr(trials, "train", pretend())
    made = Trials(config, SPACE, tmp_path, "random")
    assert [row.state for row in made.rows()] == ["unfinished"]
    assert made.run(2) and len(made.rows()) == 2
    first = reported(made)
    assert made.run(4) and reported(made)[:2] == first and len(reported(made)) == 4


def test_mistakes_end_a_sweep(config, tmp_path, monkeypatch):
    """Errors that can be seen early come before anything is written; the others name the trial."""

    def refused(*words, space=SPACE, workdir=tmp_path / "none", **changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
        with pytest.raises(ConfigError) as caught:
            Trials(changed, space, workdir)
        for word in words:
            assert word in str(caught.value)

    refused("config.eval_every is 0", eval_every=0)
    refused("config.early_stopping", early_stopping__metric="validation/unigram")
    refused("batch_size 6", batch_size=6, accumulate=4)
    refused("no field 'optimizer.rate'", space={"optimizer.rate": ("log", 1e-5, 1e-2)})
    assert not (tmp_path / "none").exists()

    def train(config, *_):
        raise ConfigError("config.model.num_heads 3")

    monkeypatch.setattr(trials, "train", train)
    with pytest.raises(
        ConfigError,
        match=r"trial 0 \(optimizer.learning_rate .*\) cannot run, and none was evaluated yet: config.model.num_h",
    ):
        Trials(config, SPACE, tmp_path / "sweep").run(2)
    refused(
        "search.optimizer.name: ['choice', 'adamw', 'lion'] there, None now",
        space={"seed": ("int", 0, 9)},
        workdir=tmp_path / "sweep",
    )
    changed = dict(steps=16, eval_every=5, eval_rows=5, grade__rows=5, max_bad_steps=5, early_stopping__patience=5)
    words = "steps: 20 there, 16 now", "eval_every: ", "eval_rows: ", "grade.rows: ", "max_bad_steps: ", "patience: "
    refused(*words, workdir=tmp_path / "sweep", **changed)
    config.log_every, config.data.dir = 7, f"{config.data.dir}/"
    Trials(config, SPACE, tmp_path / "sweep")
    with (
        locks.alone(tmp_path / "sweep", "runs a sweep"),
        pytest.raises(ConfigError, match=r"process \d+ on .* runs a sweep in"),
    ):
        Trials(config, SPACE, tmp_path / "sweep").run(2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    refused("holds a run of launch.train", workdir=tmp_path / "run")
