"""`pytest --fast` skips exactly the listed files, and names the tests that took too long."""

import os
import subprocess
import sys
from pathlib import Path

from tests import fast

ROOT = Path(__file__).resolve().parents[1]


def collected(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_the_list_of_slow_tests_names_what_there_is():
    names = [path.relative_to(ROOT).as_posix() for path in fast.slow()]
    assert names and len(names) == len({*names})
    assert all((ROOT / name).exists() and name.startswith("tests/") for name in names)


def test_a_fast_run_leaves_the_listed_out_and_nothing_else():
    where = ("tests/launch/sweeps", "tests/launch/program/test_programs.py")
    found = collected("--fast", *where)
    assert "test_sweep.py" not in found and "test_search.py" in found and "test_programs.py" in found
    assert "test_sweep.py" in collected(*where)


def test_a_test_that_takes_too_long_is_named(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import time, subprocess, sys\n"
        "busy = 'import time\\nend = time.process_time() + 0.6\\nwhile time.process_time() < end: pass'\n"
        "def test_short(): pass\n"
        "def test_waits(): time.sleep(0.8)\n"
        "def test_long(): exec(busy)\n"
        "def test_in_a_child(): subprocess.run([sys.executable, '-c', busy])\n"
    )
    (tmp_path / "conftest.py").write_text("from tests import fast\nfast._TOO_LONG = 0.5\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.fast", "--fast", "-c", str(ROOT / "pyproject.toml")]
    command += ["-n", "2", "--rootdir", str(tmp_path), str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ).stdout
    assert "4 passed" in said
    slow = [line.split()[1] for line in said.splitlines() if line.startswith("slow: ")]
    assert sorted(slow) == ["test_it.py::test_in_a_child", "test_it.py::test_long"]
