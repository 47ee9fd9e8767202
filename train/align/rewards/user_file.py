"""Loads a reward function of a user's file: `path/to/file.py:function`."""

import ast
import difflib
import functools
import inspect
import sys
import traceback
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

from train.align.rewards.reward import Function, RewardError, listed, nearest

FORM = "(prompt, completion, columns)"


def load(spec: str) -> Function:
    """Returns the function. The file is executed, once for all its functions in a process.

    Raises:
      RewardError: the file or the function is missing, or broken, or takes other arguments.
    """
    path, _, name = spec.rpartition(":")
    if spec.endswith(".py"):
        raise RewardError(f"{spec} names no function: write {spec}:FUNCTION{_has(_defined(Path(spec)))}")
    defined = _defined(Path(path))
    found = getattr(_module(Path(path).resolve()), name, None)
    if found is None:
        raise RewardError(f"{path} has no function {name!r}{nearest(name, defined)}{_has(defined)}")
    if not callable(found) or inspect.isclass(found):
        raise RewardError(f"{name!r} of {path} is not a function, but {type(found).__name__}")
    if inspect.iscoroutinefunction(found):
        raise RewardError(f"{name!r} of {path} is an async function; a reward function is called as {name}{FORM}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return found  # a function in C may not say what it takes
    try:
        signature.bind("", "", {})
    except TypeError:
        hint = ""
        if {"completions", "completion_ids"} & signature.parameters.keys():
            hint = "; it looks written for TRL, which calls a function with a whole batch"
        raise RewardError(f"{name}{signature} of {path} must take {FORM}{hint}") from None
    return found


def last_lines(error: BaseException, lines: int = 6) -> str:
    """Returns the end of an error's traceback, without the frames of the caller."""
    inner = error.__traceback__ and error.__traceback__.tb_next
    return "".join(traceback.format_exception(type(error), error, inner)).strip().split("\n", 1)[-1][-2000:]


def _defined(path: Path) -> list[str]:
    """Returns the functions that a file defines."""
    if not path.is_file():
        beside = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), beside, 1)
        raise RewardError(f"there is no file {path}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        body = ast.parse(path.read_bytes()).body
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text else ""
        raise RewardError(f"{path}, line {error.lineno}: {error.msg}{text}") from error
    except ValueError as error:
        raise RewardError(f"{path} is not a Python file: {error}") from error
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def _has(defined: list[str]) -> str:
    return f" (it has {listed(defined)})"


@functools.cache
def _module(path: Path):
    name = f"rewards_in_{path.stem}_{abs(hash(path))}"
    loader = SourceFileLoader(name, str(path))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look for their module there
    sys.path.append(str(path.parent))  # the file may import from its neighbours, and they must not hide a package
    try:
        loader.exec_module(module)
    except BaseException as error:  # sys.exit too
        raise RewardError(f"{path} can't be imported:\n{last_lines(error)}") from error
    return module
