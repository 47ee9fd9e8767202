"""Makes instructions from Python's standard library ("What does this function do?"), to try fine-tuning on.

    python -m tests.benchmarks.stdlib_docstrings --out=runs/docstrings.jsonl

Each documented public function gives one line: the question is its first line of code, and the answer is the first
sentence of its docstring.
"""

import argparse
import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "idlelib", "turtledemo"}


def questions() -> Iterator[dict[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT & set(parts) or parts[0].startswith(("_", "lib-dynload")):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                answer = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 20 <= len(answer) <= 160:
                    word = "def" if isinstance(node, ast.FunctionDef) else "async def"
                    head = f"{word} {node.name}({ast.unparse(node.args)}):"
                    yield {"instruction": f"What does this function of {parts[0]} do?", "input": head, "output": answer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/docstrings.jsonl"), help="file to write")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = list({json.dumps(row, ensure_ascii=False): None for row in questions()})
    out.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows):,} questions -> {out}")


if __name__ == "__main__":
    main()
