"""Whole runs: outputs, resume, signals. They run in this process, except where a test needs a process of its own."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.program.checking import ConfigError
from launch.run import build, continuing, models, workdirs
from launch.run.workdirs import Workdir
from launch.train import train
from model import axes
from model.architectures import Decoder
from tests.launch.conftest import refused, started
from train import loop, state
from train.checkpoints.checkpoint import Checkpoints
from train.record import lines, metrics

ROOT = Path(__file__).resolve().parents[2]


def final(config, workdir):
    """Returns (all arrays of the latest checkpoint, its JSON without wall time)."""
    prepared = Workdir(workdir).prepared
    model = models.model_config(config, prepared.vocab_size)
    with axes.use_mesh(build.mesh(config)):
        abstract = state.abstract(lambda rngs: Decoder(model, rngs), build.optimizer(config, model))
        checkpoints = Checkpoints(workdir)
        restored, saved = checkpoints.restore(abstract)
        checkpoints.close()
    saved.pop("wall")
    return jax.device_get(jax.tree.leaves(restored)), saved


def losses(workdir):
    return {row["step"]: row["loss"] for row in metrics.read(workdir / "metrics.jsonl") if "loss" in row}


def assert_same_run(config, one, other):
    """Asserts that two runs have the same parameters, optimizer state, data position and losses, bit for bit, and that
    each step is logged once."""
    arrays, saved = final(config, one)
    arrays_other, saved_other = final(config, other)
    assert saved == saved_other
    for a, b in zip(arrays, arrays_other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(one) == losses(other)
    steps = [row["step"] for row in metrics.read(other / "metrics.jsonl") if "loss" in row]
    assert steps == sorted(set(steps))


def test_a_run_writes_all_its_files_and_metrics(tiny, uninterrupted, capsys):
    workdir = uninterrupted(tiny)
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "tokenizer.json", "report.html"}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train_row = next(row for row in rows if "loss" in row and row["step"] == 8)
    assert {"perplexity", "learning_rate", "grad_norm", "skipped", "tokens_per_second", "mfu"} <= train_row.keys()
    assert [row["step"] for row in rows if "validation/loss" in row] == [4, 8]
    assert losses(workdir)[8] < losses(workdir)[1]
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-2


def test_a_finished_run_is_reported_and_unchanged(tiny, uninterrupted, capsys):
    workdir = uninterrupted(tiny)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in (workdir / "checkpoints").rglob("*"))
    capsys.readouterr()
    train(tiny, workdir)
    assert "is done: 8 steps" in capsys.readouterr().out
    assert before == sorted((str(p), p.stat().st_mtime_ns) for p in (workdir / "checkpoints").rglob("*"))


def test_resume_equals_uninterrupted(tiny, uninterrupted, tmp_path, monkeypatch):
    """A run is stopped by a signal in the middle of a log window and of a checkpoint interval, then continued. It has
    experts, because their loads are averaged from one evaluation to the next."""
    tiny.log_every = 4  # windows of the mean loss span the stop
    experts = dict(count=4, per_token=2, mlp_dim=16, correction=True)
    tiny.model.update(mlp_pattern=("sparse",), experts=experts)
    whole = tmp_path / "whole"
    train(tiny, whole)
    make = build.put

    def interrupting(mesh):
        put, calls = make(mesh), []

        def counted(batch):
            calls.append(1)
            if len(calls) == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return put(batch)

        return counted

    monkeypatch.setattr(build, "put", interrupting)
    workdir = tmp_path / "stopped"
    train(tiny, workdir)
    monkeypatch.setattr(build, "put", make)
    assert 4 < Checkpoints(workdir).latest_step < 8
    train(tiny, workdir)
    assert_same_run(tiny, whole, workdir)
    rows, again = (metrics.read(path / "metrics.jsonl") for path in (whole, workdir))
    loads, loads_again = ([row["experts/load"] for row in found if "experts/load" in row] for found in (rows, again))
    assert np.shape(loads) == (2, 2, 4) and loads == loads_again  # evaluations, layers, experts


def test_resume_from_an_earlier_checkpoint(tiny, uninterrupted, tmp_path):
    """A killed process loses the steps after its last checkpoint and repeats them exactly; none is logged twice."""
    whole = uninterrupted(tiny)
    workdir = tmp_path / "killed"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    train(tiny, workdir)
    assert_same_run(tiny, whole, workdir)


def test_sigterm_ends_a_process_cleanly(tiny, tmp_path):
    """After a SIGTERM, a real process saves a checkpoint of the step at which it stops and ends with status 0."""
    tiny.steps = 100000
    config = tmp_path / "config.py"
    config.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({tiny.to_dict()!r})\n"
    )
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "launch.train", f"--config={config}", f"--workdir={workdir}"]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and max(losses(workdir), default=0) < 12:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    step = int(re.search(r"stopped after step (\d+), saved", output)[1])
    assert Checkpoints(workdir).latest_step == step
    assert "Traceback" not in output


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(tiny, tmp_path, monkeypatch, capfd, times):
    """After one Ctrl-C, the step ends and is saved, and the command to continue is printed. A second one ends the run
    at once."""
    make = build.put

    def interrupting(mesh):
        put, calls = make(mesh), []

        def counted(batch):
            calls.append(1)
            for _ in range(times * (len(calls) == 6)):
                os.kill(os.getpid(), signal.SIGINT)
            return put(batch)

        return counted

    monkeypatch.setattr(build, "put", interrupting)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=a b.py", "--workdir=run"])
    with pytest.raises(KeyboardInterrupt) if times == 2 else contextlib.nullcontext():
        assert not train(tiny, tmp_path)
    deadline = time.monotonic() + 30  # the save after step 4 may still be in progress; the run did not wait for it
    while not (tmp_path / "checkpoints" / "4").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert Checkpoints(tmp_path, reading=True).latest_step == (4 if times == 2 else 6)
    out, err = capfd.readouterr()
    command = "To continue:\n  python -m launch.train '--config=a b.py' --workdir=run\n"
    assert (f"stopped after step 6, saved. {command}" in out) == (times == 1)
    assert "SIGINT: the run saves and stops after this step; Ctrl-C again stops it at once" in err


def test_ctrl_c_while_the_main_thread_is_blocked(tiny, tmp_path):
    """The main thread waits for a computation that never ends, so Python's signal handlers never run."""
    program = """
import os, signal, threading
import jax
from absl import flags
from launch.run import build
from launch.program import runtime
from launch import train

def sent():
    os.kill(os.getpid(), signal.SIGINT)

def stuck(mesh, make=build.put):
    put, calls = make(mesh), []
    def one(batch):
        calls.append(1)
        if len(calls) == 6:
            threading.Timer(0.5, sent).start()
            threading.Timer(1.0, sent).start()
            jax.jit(lambda n: jax.lax.while_loop(lambda n: n > 0, lambda n: n + 1 - 1, n))(1).block_until_ready()
        return put(batch)
    return one

build.put = stuck
flags.mark_flags_as_required(["config", "workdir"])
runtime.run(train.main)
"""
    done = started(program, tiny, tmp_path / "run")
    assert done.returncode == 130 and "Ctrl-C again stops it at once" in done.stderr, done
    assert Checkpoints(tmp_path / "run", reading=True).latest_step == 4


def test_stops_after_bad_steps_in_a_row(tiny, tmp_path):
    tiny.optimizer.learning_rate = 1e30
    tiny.optimizer.clip_norm = 0.0
    tiny.max_bad_steps = 3
    tiny.steps = 30
    with pytest.raises(loop.TrainingStopped, match="learning_rate"):
        train(tiny, tmp_path / "run")
    rows = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert max(row["skipped"] for row in rows if "skipped" in row) >= 1


def test_a_log_does_not_use_the_device(tiny, tmp_path, monkeypatch):
    """The next step already runs when a step is logged, so anything that the log computed on the device would wait."""
    log = jax.transfer_guard_host_to_device("disallow")(lines.log)
    monkeypatch.setattr(lines, "log", log)
    train(tiny, tmp_path / "run")
    rate = build.learning_rate(tiny)
    rows = [row for row in metrics.read(tmp_path / "run" / "metrics.jsonl") if "learning_rate" in row]
    expected = [float(rate(row["step"] - 1)) for row in rows]
    assert len(rows) == tiny.steps // tiny.log_every
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, rtol=1e-6)


def test_keeps_last_and_best(tiny, tmp_path):
    """The learning rate ruins the model after a while, so an early step has the best validation loss and is kept."""
    tiny.steps, tiny.eval_every, tiny.checkpoint_every, tiny.keep_last = 12, 2, 2, 1
    tiny.optimizer.update(schedule="constant", learning_rate=3.0, warmup_steps=0)
    workdir = tmp_path / "run"
    train(tiny, workdir)
    rows = metrics.read(workdir / "metrics.jsonl")
    validation = {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}
    best = min(validation, key=validation.get)
    assert {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()} == {best, 12}


def test_profiler_window(tiny, tmp_path):
    tiny.profile_start, tiny.profile_steps = 2, 2
    train(tiny, tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_run_older_than_a_field_continues(tiny, uninterrupted, tmp_path):
    workdir = shutil.copytree(uninterrupted(tiny), tmp_path / "run")
    recorded = json.loads((workdir / "config.json").read_text())
    assert recorded["data"].pop("copies") == "keep"
    (workdir / "config.json").write_text(json.dumps(recorded))
    continuing.check(Workdir(workdir), tiny)
    tiny.data.copies = "drop"
    with pytest.raises(ConfigError, match=r"data\.copies: 'keep' there, 'drop' now"):
        continuing.check(Workdir(workdir), tiny)


def test_refuses_another_config(tiny, uninterrupted, tmp_path):
    workdir = uninterrupted(tiny)
    tiny.optimizer.learning_rate = 0.5
    refused(tiny, workdir, ConfigError, "optimizer.learning_rate: 0.01 there, 0.5 now", "new --workdir")


def test_a_run_on_masked_tokens_reports_a_baseline(tiny, tmp_path, capsys):
    tiny.data.tokenizer.mask = True
    tiny.model.update(architecture="encoder", head="masked")
    tiny.data.corruption.kind = "masked"
    train(tiny, tmp_path)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    baselines = {row["validation/unigram"] for row in rows if "validation/loss" in row}
    assert len(baselines) == 1 and 2 < baselines.pop() < np.log(257)
    assert "unigram" in capsys.readouterr().out
    assert not any("validation/bits_per_byte" in row for row in rows)


def test_loads_of_experts_without_evaluations_logs_and_checkpoints(tiny, tmp_path, capsys):
    """The loads are written once, at the end, and nothing else is. Notes warn that nothing balances the experts, and
    that nothing is saved."""
    tiny.model.update(mlp_pattern=("sparse",), experts=dict(count=4, per_token=2, mlp_dim=16))
    tiny.steps, tiny.eval_every, tiny.log_every, tiny.checkpoint_every = 3, 0, 0, 0
    train(tiny, tmp_path)
    assert not losses(tmp_path) and 0 < json.loads((tmp_path / "summary.json").read_text())["goodput"] < 1
    (loads,) = [row["experts/load"] for row in metrics.read(tmp_path / "metrics.jsonl") if "experts/load" in row]
    assert np.shape(loads) == (2, 4)
    said = capsys.readouterr().out
    assert "note: nothing balances the load of the experts" in said
    (note,) = [line for line in said.splitlines() if "checkpoint_every" in line]
    assert note.startswith("note: config.checkpoint_every is 0, so nothing is saved, not even at the end;")
    assert said.index(note) < said.index("goodput") and not workdirs.steps(tmp_path)
