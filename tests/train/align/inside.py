"""Runs lines of code in the sandbox."""

from train.align import sandbox


def said(code, **settings):
    """Returns the output of code that must run to its end."""
    result = sandbox.run(code, **settings)
    assert result.passed, result
    return result.stdout


def attempt(line):
    """Returns the name of the exception of a line of code in the sandbox, or 'done'."""
    code = (
        f"try:\n    {line}\nexcept BaseException as error:\n    print(type(error).__name__)\nelse:\n    print('done')"
    )
    return said(f"import os, socket, signal, ctypes\n{code}").strip()
