"""A reward for code that passes unit tests."""

import ast
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from train.align import sandbox
from train.align.rewards.fences import last_block
from train.align.rewards.reward import Ready, RewardError, Settings, column

_ONLY_DEFINES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
)


@dataclasses.dataclass(frozen=True)
class PythonTests(Ready):
    """1 if the completion's Python code passes all unit tests of the column, in the sandbox; else 0.

    The code is the last fenced block, or the whole text. The column is a text of asserts or a list of such texts, which
    run after the code in its module; what stands below `if __name__ == "__main__"` does not run. All must pass, as in
    pass@k: a share of passed tests rewards code that answers some with constants. Tests that still run after
    `settings.seconds` have not passed.
    """

    column: str
    settings: Settings

    def __post_init__(self):
        if why := sandbox.why_not():
            raise RewardError(why)
        if self.settings.packages:
            imports = "\n".join(f"import {name}" for name in self.settings.packages)
            try:
                tried = sandbox.run(imports, limits=sandbox.Limits(seconds=60), packages=self.settings.packages)
            except sandbox.SandboxError as error:
                raise RewardError(str(error)) from None
            if not tried.passed:
                last = (tried.stderr.strip().splitlines() or [tried.status])[-1]
                raise RewardError(f"code in the sandbox can't import {', '.join(self.settings.packages)}: {last}")

    def tests(self, columns: Mapping[str, Any]) -> list[str]:
        """Returns the tests. Refused are tests that would pass whatever the code does."""
        value = column(columns, self.column)
        tests = [value] if isinstance(value, str) else value
        if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
            raise RewardError(
                f"column {self.column!r} must be asserts, as a text or a list of texts; it is {value!r:.80}"
            )
        lines = [line for test in tests for line in _parsed(test, self.column)]
        if all(isinstance(line, _ONLY_DEFINES) or _is_idle(line) for line in lines):
            raise RewardError(
                f"the tests in column {self.column!r} check nothing: they only define names. Add the call that runs "
                "them, such as check(add)"
            )
        if any("unittest.main(" in ast.unparse(line) for line in lines):
            raise RewardError(
                f"the tests in column {self.column!r} call unittest.main, which exits before they have ended. "
                "Write asserts"
            )
        return tests

    def check(self, columns: Mapping[str, Any]) -> None:
        self.tests(columns)

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        tests, code = self.tests(columns), last_block(completion, ("python", "py", "python3"))
        if not code.strip():
            return 0.0
        limits = sandbox.Limits(seconds=self.settings.seconds)
        return float(sandbox.run(code, *tests, limits=limits, packages=self.settings.packages, name="answer").passed)


def _parsed(test: str, name: str) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of doubtful escapes in the tests' strings
            return ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RewardError(f"the tests in column {name!r} are not Python: {error}") from error


def _is_idle(line: ast.stmt) -> bool:
    """Returns whether a line runs nothing: `pass`, a text, or a block for a main program, which the answer is not."""
    if isinstance(line, ast.If):
        return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(line.test))
    return isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
