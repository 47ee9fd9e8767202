"""Specifications of functions: what they name, and what a mistake is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from train.align import sandbox
from train.align.rewards import user_file
from train.align.rewards.reward import RewardError, Settings
from train.align.rewards.table import READY, load, of_user

ROOT = Path(__file__).resolve().parents[4]


def test_a_function_of_a_file(tmp_path):
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    path = tmp_path / "my rewards.py"
    path.write_text(
        "import beside\nCALLS = []\n"
        "def half(prompt, completion, columns):\n    CALLS.append(1)\n    return beside.HALF\n"
        "def calls(prompt, completion, columns, scale=1):\n    return scale * len(CALLS)\n"
        "class Judge:\n    def __call__(self, *arguments): return 3\njudge = Judge()\n"
    )
    assert of_user(f"{path}:half") and not of_user("regex:a.py b")
    half, calls, judge = (load(f"{path}:{name}", Settings()) for name in ("half", "calls", "judge"))
    assert half("", "", {}) == 0.5 and calls("", "", {}) == 1 and judge("", "", {}) == 3  # the file runs once


ONE = "def short(prompt, completion, columns): return 1"
TRL = "def f(completions, **kwargs): return [1]"
BROKEN = "x = 1\ndef f(p, c, r)\n    return 1"
ABSENT = "import no_such_module\ndef f(p, c, r): return 1"


@pytest.mark.parametrize(
    "text, name, message",
    [
        (ONE, "shrot", r"no function 'shrot'; did you mean 'short'\? \(it has short\)"),
        (
            TRL,
            "f",
            r"f\(completions, \*\*kwargs\) of .* must take .*; it looks written for TRL",
        ),
        ("def f(completion): return 1", "f", r"f\(completion\) of .* must take \(prompt, completion, columns\)$"),
        ("async def f(p, c, r): return 1", "f", "async function"),
        ("class F: pass", "F", "'F' of .* is not a function, but type"),
        ("f = 3", "f", "'f' of .* is not a function, but int"),
        (BROKEN, "f", "mine.py, line 2: expected ':': def f"),
        (ABSENT, "f", "(?s)can't be imported:.*line 1.*No module named 'no_such_module'"),
        ("import sys\nsys.exit(3)", "f", "(?s)can't be imported:.*SystemExit: 3"),
        ("def f(p, c, r): return 1\0", "f", "mine.py.* null bytes"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, name, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    user_file._module.cache_clear()
    with pytest.raises(RewardError, match=message):
        load(f"{path}:{name}", Settings())


def test_mistakes_in_a_specification(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("def short(p, c, r): return 1\ndef _inner(): pass\n")
    for spec, message in {
        f"{path}": r"rewards.py names no function: write .*rewards.py:FUNCTION \(it has short\)",
        f"{tmp_path}/reward.py:short": r"there is no file .*reward.py; did you mean .*rewards.py\?",
        f"{tmp_path}/no/rewards.py:short": "there is no file",
        "numric:answer": r"no reward function 'numric'; did you mean 'numeric'\?",
        "": "no reward function ''",
        "numeric": "needs an argument: numeric:COLUMN",
    }.items():
        with pytest.raises(RewardError, match=message):
            load(spec, Settings())
    with pytest.raises(RewardError, match=r"exact:COLUMN, json\[:COLUMN\], language:CODE, length:LOW-HIGH"):
        load("accuracy", Settings())


def test_code_needs_the_sandbox(monkeypatch):
    monkeypatch.setattr(sandbox, "why_not", lambda: "no bwrap here")
    with pytest.raises(RewardError, match="no bwrap here"):
        load("python:tests", Settings())


def test_every_ready_function_is_in_the_readme():
    text = (ROOT / "train" / "README.md").read_text()
    for name, row in READY.items():
        form = f"{name}:{row.argument}" if not row.argument.startswith("[") else f"{name}:{row.argument[1:-1]}"
        assert f"`{form}`" in text


def test_a_worker_imports_nothing_heavy():
    """It starts in a fraction of a second, and can't touch an accelerator by itself."""
    heavy = {"jax", "flax", "numpy", "torch", "data"}
    code = f"import sys, train.align.rewards.worker; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
