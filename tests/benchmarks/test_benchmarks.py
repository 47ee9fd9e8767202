"""The comparisons report why a side failed, and the questions about the standard library are well formed."""

import sys
import sysconfig

import pytest

from tests.benchmarks.stdlib_docstrings import questions
from tests.benchmarks.training_step import Worker


def test_a_worker_that_ends_early_says_why():
    with pytest.raises(SystemExit, match=r"a worker ended early: .*\n(.*\n)*ModuleNotFoundError: .*no_such_module"):
        Worker([sys.executable, "-c", "import no_such_module"])


def test_questions(tmp_path, monkeypatch):
    """Questions cover public functions, also asynchronous ones, whose docstring has a first sentence."""
    doc = '"""Read all that is there, to the end."""'
    source = f"def read(a, b=1):\n  {doc}\nasync def wait(*, c):\n  {doc}\ndef _own():\n  {doc}\ndef short():\n  pass\n"
    (tmp_path / "files.py").write_text(source)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    rows = list(questions())
    assert [row["input"] for row in rows] == ["def read(a, b=1):", "async def wait(*, c):"]
    assert {row["output"] for row in rows} == {"Read all that is there, to the end."}
