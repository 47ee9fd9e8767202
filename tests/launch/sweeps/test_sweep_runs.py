"""Sweeps with real trials, which train."""

import os
import re
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest

from launch.sweeps import trials
from launch.sweeps.trials import Trials
from tests.launch.sweeps.test_sweep import Killed, write
from tests.launch.test_train import ROOT, losses
from train.record import metrics


def figures(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    return {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}


def test_a_real_trial_continues_from_its_checkpoint(tiny, tmp_path, monkeypatch):
    """A trial is interrupted after its second evaluation, before the save, and started again. Its losses, also those of
    steps, equal those of a run of launch.train with the same values, bit for bit."""
    space = {"optimizer.learning_rate": ("choice", 1e-3)}

    def cut_off(config, workdir, chosen, observe):
        def cut(step, figures):
            observe(step, figures)
            if step == 8:
                raise Killed

        return train(config, workdir, chosen, cut)

    train = trials.train
    monkeypatch.setattr(trials, "train", cut_off)
    with pytest.raises(Killed):
        Trials(tiny, space, tmp_path / "sweep", "grid").run(1)
    monkeypatch.setattr(trials, "train", train)
    again = Trials(tiny, space, tmp_path / "sweep", "grid")
    assert again.run(1)
    tiny.optimizer.learning_rate = 1e-3
    train(tiny, tmp_path / "run")
    assert losses(again.directory(0)) == losses(tmp_path / "run")
    assert again.rows()[0].values == figures(tmp_path / "run")
    assert again.rows()[0].state == "complete" and list(again.rows()[0].values) == [4, 8]


def test_the_printed_command_trains_the_best_trial_again(tiny, tmp_path):
    """A process runs launch.sweep with two trials, and a shell runs the command that it prints. The config has an
    argument, and its flags contain quotes."""
    tiny.steps = 3
    words = [f"--config={write(tiny, tmp_path)}:an argument", f"--search={tmp_path}/search.py", "--sampler=grid"]
    sources = str(tiny.data.sources).replace(".txt", ".tx?")
    words += [f"--workdir={tmp_path}/sweep", "--config.eval_every=3", f"--config.data.sources={sources}"]
    (tmp_path / "search.py").write_text(
        "def get_search():\n  return {'optimizer.learning_rate': ('choice', 1e-30, 1 / 30)}\n"
    )
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    run = lambda command: subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    done = run([sys.executable, "-m", "launch.sweep", *words])
    assert done.returncode == 0, done.stdout
    command = re.search(r"^  (python -m launch.train .*)", done.stdout, re.MULTILINE)[1]
    assert escape(command) in (tmp_path / "sweep" / "sweep.html").read_text()
    again = run(["bash", "-c", command])
    assert again.returncode == 0, again.stdout
    best, *others = sorted((figures(tmp_path / "sweep" / "trials" / name) for name in "01"), key=lambda found: found[3])
    assert figures(tmp_path / "sweep" / "best") == best != others[0]
