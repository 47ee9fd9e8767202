"""Code that passes unit tests: where it stands in an answer, what passes, and tests that check nothing."""

import pytest

from train.align.rewards.fences import last_block
from train.align.rewards.python_tests import PythonTests
from train.align.rewards.reward import RewardError, Settings

RIGHT = "def double(x):\n    return 2 * x\n"
TESTS = ["assert double(2) == 4", "assert double(-1) == -2"]
needs_sandbox = pytest.mark.needs("bubblewrap")


@pytest.mark.parametrize(
    "text, code",
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Try\n```py\nx = 1\n```\nor better\n```python\nx = 2\n```\nbye", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nIt prints\n```text\n1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1\n"),
        ("```python\nx = 1\ny = ", "x = 1\ny = "),  # the completion was cut
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("~~~Python title=a\nx = 1\n~~~", "x = 1\n"),
        ("1.  do\n    ```python\n    x = 1\n    ```", "x = 1\n"),  # in a list
        ("```sh\nls\n```", "```sh\nls\n```"),
        ("```python\n```", ""),
    ],
)
def test_the_last_block_counts(text, code):
    assert last_block(text, ("python", "py")) == code


@needs_sandbox
@pytest.mark.parametrize("tests", [TESTS, "\n".join(TESTS)])
@pytest.mark.parametrize(
    "completion, value",
    [
        (RIGHT, 1),
        (f"Sure!\n```python\n{RIGHT}```\nHope this helps.", 1),
        (f"```python\n{RIGHT}\nif __name__ == '__main__':\n    print(double(int(input())))\n```", 1),
        (f"import sys\n{RIGHT}", 1),
        ("def double(x):\n    return 4", 0),  # passes one of two
        ("def twice(x):\n    return 2 * x", 0),
        ("def double(x):\n  return 2 *", 0),
        ("I can't do that.", 0),
        ("", 0),
        ("```python\n\n```", 0),
        (f"{RIGHT}exit(0)", 0),
        (f"{RIGHT}import os; os._exit(0)", 0),
        ("def double(x):\n    raise SystemExit", 0),
        ("def double(x):\n    while True: pass", 0),
        (f"{RIGHT}'''", 0),
    ],
)
def test_rewards(tests, completion, value):
    function = PythonTests("tests", Settings(seconds=1 if "while True" in completion else 20))
    function.check({"tests": tests})
    assert function("", completion, {"tests": tests}) == value


@needs_sandbox
def test_packages():
    tests = "import numpy\nassert (double(numpy.ones(2)) == 2).all()"
    assert PythonTests("tests", Settings(packages=("numpy",)))("", RIGHT, {"tests": tests}) == 1
    assert PythonTests("tests", Settings())("", RIGHT, {"tests": tests}) == 0
    with pytest.raises(RewardError, match="numppy"):
        PythonTests("tests", Settings(packages=("numppy",)))


@needs_sandbox
@pytest.mark.parametrize(
    "tests, message",
    [
        (None, "must be asserts, as a text or a list of texts; it is None"),
        ([1], "must be asserts"),
        ([], "check nothing"),
        ("", "check nothing"),
        ("# later", "check nothing"),
        ("def check(f):\n    assert f(2) == 4\n", "check nothing: they only define names. Add the call"),
        ("def check(f): assert f(2)\nif __name__ == '__main__': check(double)", "check nothing"),
        ('"""Tests."""\ndef check(f): assert f(2)\npass', "check nothing"),
        (["import math", "def test_double():\n    assert double(2) == 4"], "check nothing"),
        ("assert double(2) = 4", "are not Python: .*line 1"),
        ("\0", "are not Python"),
        ("import unittest\nclass T(unittest.TestCase): pass\nunittest.main()", "call unittest.main"),
    ],
)
def test_tests_that_would_pass_whatever_the_code_does_are_refused(tests, message):
    with pytest.raises(RewardError, match=message):
        PythonTests("tests", Settings()).check({"tests": tests})
