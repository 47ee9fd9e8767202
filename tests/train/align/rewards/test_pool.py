"""Worker processes: how many there are, and that none stays behind."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.train.align.rewards.batches import FILE, alive, items, pids
from train.align.rewards import pool
from train.align.rewards.scoring import Scoring

ROOT = Path(__file__).resolve().parents[4]

PARENT = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start processes in the background without it
from train.align.rewards.scoring import Item, Scoring
scoring = Scoring([(sys.argv[1], 1.0)], seconds=60)
print(scoring._pool._processes[0]._process.pid, flush=True)
"""


def parent(function, lines, **settings):
    code = PARENT + textwrap.dedent(lines)
    return subprocess.Popen(
        [sys.executable, "-c", code, f"{FILE}:{function}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def test_slow_functions_get_more_processes(monkeypatch):
    with Scoring([(f"{FILE}:slow", 1.0)], processes=4) as scoring:
        started = time.monotonic()
        scored = scoring.score(items([{}] * 40))
        assert time.monotonic() - started < 3.5  # alone, one process would take 4 s
        assert 2 <= len({*scored.values_NF[:, 0]}) <= 4
    monkeypatch.setattr(pool, "_SLOW", 5.0)
    with Scoring([(f"{FILE}:length", 1.0)], processes=4) as scoring:
        scoring.score(items([{}] * 400))
        assert len(pids(scoring)) == 1


def test_any_thread_may_score():
    """SIGALRM works in functions, and threads don't mix their results up."""
    with Scoring([(f"{FILE}:alarm", 1.0)]) as scoring, concurrent.futures.ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda n: scoring.score(items([{}] * n)).values_NF[:, 0].tolist(), (1, 2, 3)))
    assert results == [[0.25], [0.25] * 2, [0.25] * 3]


def test_functions_may_print_and_see_no_accelerator(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with Scoring([(f"{FILE}:platforms", 1.0)]) as scoring:
        assert scoring.score(items([{}] * 3)).rewards_N.tolist() == [1, 1, 1]


def test_nothing_stays_when_it_is_closed(tmp_path):
    """No process, no zombie, and none that a function started."""
    note = tmp_path / "pid"
    scoring = Scoring([(f"{FILE}:child", 1.0)], seconds=2)
    before = pids(scoring)
    scored = scoring.score(items([{"file": str(note)}]))
    assert "took longer than 2 s" in scored.notes[0]
    scoring.close()
    scoring.close()
    time.sleep(0.1)
    assert not any(map(alive, [*before, int(note.read_text())]))
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)  # no zombie


def test_a_process_that_ended_between_two_batches_is_replaced():
    with Scoring([(f"{FILE}:length", 1.0)]) as scoring:
        scoring.score(items([{}]))
        os.kill(pids(scoring)[0], signal.SIGKILL)
        time.sleep(0.1)
        scored = scoring.score(items([{}] * 3))
        assert scored.rewards_N.tolist() == [0, 1, 2] and not scored.notes


def test_the_interpreter_ends_without_close():
    process = parent("length", "scoring.score([Item('', '', {})])")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and err == "" and not alive(int(out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_is_ended_takes_its_processes_along(number):
    """Ctrl-C goes to the whole group of the terminal; only the parent says so."""
    process = parent("length", "time.sleep(600)", start_new_session=True)
    worker = int(process.stdout.readline())
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    for _ in range(50):
        if not alive(worker):
            break
        time.sleep(0.1)
    assert not alive(worker)
    assert err.count("Traceback") == (number == signal.SIGINT) and "worker" not in err


def test_ctrl_c_while_functions_run():
    process = parent("slow", "scoring.score([Item('', '', {})] * 1000)", start_new_session=True)
    worker = int(process.stdout.readline())
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert err.strip().endswith("KeyboardInterrupt") and err.count("Traceback") == 1 and not alive(worker)
