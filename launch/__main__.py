"""Lists the programs: python -m launch.

It parses their docstrings instead of importing them, because importing jax takes seconds.
"""

import ast
import shlex
import sys
from pathlib import Path


def programs() -> dict[str, str]:
    """Returns the first line of each program's docstring, by the program's name."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("__"))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0] for path in files}


def main(words: list[str]) -> None:
    found = programs()
    width = max(map(len, found))
    lines = [f"  python -m launch.{name:{width}}  {what}" for name, what in found.items()]
    text = "\n".join(["Programs, each with --help:", "", *lines])
    if words and words[0] in found:
        sys.exit(f"error: write a dot before the program, not a space: python -m launch.{shlex.join(words)}")
    if words and words[0] not in ("--help", "-h"):
        sys.exit(f"error: there is no program {words[0]!r}.\n{text}")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
