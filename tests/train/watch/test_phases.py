"""The watchdog reports a phase that takes far longer than before, with stack traces, and ends the process."""

import subprocess
import sys
import time
from pathlib import Path

from train.watch.phases import Phases, Watchdog

ROOT = Path(__file__).resolve().parents[3]


def test_a_phase_inside_another_has_its_own_time():
    now = [0.0]
    phases = Phases(lambda: now[0])
    assert phases.current() == ("", 0.0)
    with phases("step"):
        now[0] += 2
        with phases("barrier"):
            now[0] += 5
            assert phases.current() == ("barrier", 5.0)
        now[0] += 1
        assert phases.current() == ("step", 1.0)
    now[0] += 4
    assert phases.longest == {"": 0.0, "step": 2.0, "barrier": 5.0} and phases.times == {"step": 1, "barrier": 1}
    assert phases.seconds() == {"": 4.0, "step": 3.0, "barrier": 5.0}


def test_compiling_is_taken_out_of_the_phase():
    """jax reports a compilation after its inner ones, whose time it includes."""
    now = [0.0]
    phases = Phases(lambda: now[0])
    now[0] += 1
    with phases("step"):
        now[0] += 2
        phases.was_compiling(1.0)
        now[0] += 2
        phases.was_compiling(0.5)
        phases.was_compiling(3.5)  # includes both of the above
        now[0] += 3
        phases.was_compiling(2.0)
    with phases("save"):
        now[0] += 1
        phases.was_compiling(9.0)  # only the part inside the phase counts
    assert phases.seconds() == {"": 1.0, "step": 1.5, "save": 0.0, "compile": 6.5}


def test_the_limit_follows_the_history():
    now = [0.0]
    phases = Phases(lambda: now[0])
    watchdog = Watchdog(phases, seconds=10, first_seconds=100, end_after=1, end=print)
    for seconds, expected in ((3.0, 100), (0.1, 100), (0.1, 60)):
        with phases("save"):
            now[0] += seconds
        assert watchdog.limit("save") == expected  # 20 times the longest phase, once there is a history
    for _ in range(3):
        with phases("data"):
            now[0] += 0.1
    assert watchdog.limit("data") == 10


def test_work_that_goes_on_is_left_alone(capfd):
    phases, ends = Phases(), []
    with Watchdog(phases, seconds=0.2, first_seconds=0.2, end_after=0.1, end=ends.append):
        for _ in range(8):
            with phases("step"):
                time.sleep(0.05)
    assert not ends and "no progress" not in capfd.readouterr().err


def test_a_process_that_was_stopped_goes_on():
    """The time between SIGSTOP (Ctrl-Z) and SIGCONT counts for nothing."""
    code = """
import os, signal, subprocess, time
from train.watch.phases import Phases, Watchdog
phases = Phases()
with Watchdog(phases, seconds=3.0, first_seconds=3.0, end_after=0.3, end=lambda text: os._exit(3)), phases("step"):
    time.sleep(0.2)
    subprocess.Popen(["sh", "-c", f"sleep 5; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "no progress" not in done.stderr, done.stderr


def test_what_is_hidden_behind_steps_is_theirs():
    now, busy = [0.0], [True]
    phases = Phases(lambda: now[0])
    for hidden in (True, False):
        busy[0] = hidden
        with phases("data", behind=lambda: busy[0]):
            now[0] += 1
    assert phases.seconds() == {"": 0.0, "step": 1.0, "data": 1.0}
    assert phases.longest["data"] == 1.0 and phases.times == {"data": 2}


def test_compiling_is_no_history():
    now = [0.0]
    phases = Phases(lambda: now[0])
    with phases("step"):
        now[0] += 400
        phases.was_compiling(399.0)
    assert phases.longest["step"] == 1.0


def test_a_process_that_hangs_ends():
    code = """
import threading
from launch.hosts import processes
from train.watch.phases import Phases, Watchdog
phases = Phases()
def waits_for_good():
    threading.Event().wait()
with Watchdog(phases, seconds=0.3, first_seconds=0.3, end_after=0.5, end=processes.end), phases("save"):
    waits_for_good()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("no progress: 'save' has taken") and "in waits_for_good" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 'save' hangs: no progress in")
    assert "The same command continues from the last checkpoint" in done.stderr
