"""Lists the programs: python -m launch.

Their docstrings are read, not imported, so the list is there before jax would be.
"""

import ast
import shlex
import sys
from pathlib import Path


def programs() -> dict[str, str]:
    """What each program does, the first line of its docstring, by its name."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("__"))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0] for path in files}


def main(words: list[str]) -> None:
    found = programs()
    width = max(map(len, found))
    lines = [f"  python -m launch.{name:{width}}  {what}" for name, what in found.items()]
    text = "\n".join(["Programs, each with --help:", "", *lines])
    if words and words[0] in found:
        sys.exit(f"error: a program stands behind a point: python -m launch.{shlex.join(words)}")
    if words and words[0] not in ("--help", "-h"):
        sys.exit(f"error: there is no program {words[0]!r}.\n{text}")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
