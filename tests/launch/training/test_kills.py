"""A run that is killed again and again gives the same result as an undisturbed one, bit for bit.

Each process kills itself (SIGKILL) at a random moment after it enters a phase for the n-th time; then the same command
is given again. By default there are five kills. For more:

    bash tests/run.sh tests/launch/training/test_kills.py --kills=25
"""

import json
import random
import re
import signal

from tests.launch.conftest import started
from tests.launch.test_train import assert_same_run
from train.checkpoints import manifest
from train.record import metrics

PHASES = ("prepare", "step", "save", "evaluate", "report")

# launch.train, which kills itself in the phase that the arguments name.
PROGRAM = """
import os, signal, sys, threading
phase, count, delay = sys.argv.pop(1), int(sys.argv.pop(1)), float(sys.argv.pop(1))
from launch.program import runtime
from launch import train
from absl import flags
from data import stage
from train.align import rounds
from train.checkpoints import checkpoint
from train import loop
from train.report import run_report

entered = []

def dying(name, function):
    def run(*args, **kwargs):
        if name == phase:
            entered.append(name)
            if len(entered) == count:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return function(*args, **kwargs)
    return run

def parts_dying(state, step, saved, schedule, parts, run=loop.train):
    parts.train_step = dying("step", parts.train_step)
    parts.evaluate = dying("evaluate", parts.evaluate)
    return run(state, step, saved, schedule, parts)

def rounds_dying(self, *args, answered=rounds.Rounds._answered):
    self._tools = self._tools._replace(
        sample=dying("sample", self._tools.sample), rewards=dying("score", self._tools.rewards)
    )
    return answered(self, *args)

rounds.Rounds._answered = rounds_dying
loop.train = parts_dying
stage.run = dying("prepare", stage.run)
checkpoint.Checkpoints.save = dying("save", checkpoint.Checkpoints.save)
run_report.write_report = dying("report", run_report.write_report)
flags.mark_flags_as_required(["config", "workdir"])
runtime.run(train.main)
"""


def start(config, workdir, phase="", count=0, delay=0.0):
    """Runs one process, which dies `delay` seconds after it enters `phase` for the `count`-th time; returns its exit
    status."""
    done = started(PROGRAM, config, workdir, phase, str(count), str(delay))
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def logged(workdir):
    """Returns the rows of metrics.jsonl without the fields that depend on the clock."""
    timed = ("time", "seconds_per_step", "tokens_per_second", "mfu", "goodput", "wall")
    rows = [row for row in metrics.read(workdir / "metrics.jsonl") if "start" not in row.get("event", {})]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def test_killed_anywhere(tiny, tmp_path, request):
    kills, rng = request.config.getoption("--kills"), random.Random(0)
    config = tiny
    config.steps, config.checkpoint_every, config.eval_every, config.log_every = 8 + 2 * kills, 3, 4, 1
    config.data.dir = str(tmp_path / "data")
    survived = []
    for number in range(kills):
        phase = PHASES[number % (len(PHASES) - 1)] if number < kills - 1 else "report"
        count = rng.randint(1, 3) if phase in ("prepare", "step") else 1
        status = start(config, tmp_path / "killed", phase, count, rng.uniform(0, 0.1))
        survived += [phase] if status == -signal.SIGKILL else []
    assert start(config, tmp_path / "killed") == 0
    assert len(survived) >= kills - 1, survived  # the last kill may come after the end of the run
    config.data.dir = str(tmp_path / "other")
    assert start(config, tmp_path / "alone") == 0

    assert_same_run(config, tmp_path / "alone", tmp_path / "killed")
    assert logged(tmp_path / "alone") == logged(tmp_path / "killed")
    wall = json.loads((tmp_path / "killed" / "summary.json").read_text())["wall"]
    trained = [phase for phase in survived if phase != "prepare"]
    assert 1 < wall["starts"] <= kills + 1 and wall["between"] > 0
    assert wall.get("lost", 0) > 0 or "step" not in trained
    for step in (tmp_path / "killed" / "checkpoints").iterdir():
        assert step.name.isdecimal() and manifest.problems(step) == []
    left = [path for path in tmp_path.rglob("*") if re.search(r"tmp|partial", path.relative_to(tmp_path).as_posix())]
    assert not left and not (tmp_path / "killed" / "damaged").exists()
