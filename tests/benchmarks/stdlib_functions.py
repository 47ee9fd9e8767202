"""Makes a labelled data set from Python's standard library ("Which module is this function from?"), and a baseline.

    python -m tests.benchmarks.stdlib_functions --out=runs/functions.csv
    python -m launch.train --config=configs/classify.py --config.data.path=runs/functions.csv \
        --config.data.labels.split=split --workdir=runs/functions

A text is the source of a function without comments, docstrings and decorators; the function's name and the names of its
module and class are replaced by `name`. The label is the module. The data set has the 12 modules with the most
functions. A function that occurs in several modules, or twice, is left out, and a fifth of each module is held out.
Prints the held-out figures of two baselines: TF-IDF over words and word pairs with logistic regression (scikit-learn),
and always predicting the most frequent module.
"""

import argparse
import ast
import csv
import hashlib
import re
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path

NAME = "name"
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "idlelib", "pydoc_data"}
_LEFT_OUT |= {"encodings", "turtledemo", "ensurepip"}


def functions(count: int) -> list[tuple[str, str]]:
    """Returns (text, module) for the `count` modules with the most functions; a package counts as one module."""
    root, found = Path(sysconfig.get_path("stdlib")), defaultdict(dict)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _LEFT_OUT & set(parts) and not parts[0].startswith(("_", "lib-dynload")):
            for text in _texts(path.read_text(encoding="utf-8", errors="replace"), set(parts)):
                found[parts[0]].setdefault(text)
    seen = Counter(text for texts in found.values() for text in texts)
    own = {module: [text for text in texts if seen[text] == 1] for module, texts in found.items()}
    largest = sorted(own, key=lambda module: (-len(own[module]), module))[:count]
    return [(text, module) for module in sorted(largest) for text in own[module]]


def _texts(source: str, modules: set[str]):
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    yield from _of(tree, modules)


def _of(node: ast.AST, names: set[str]):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _shown(child, names | {child.name})
        elif isinstance(child, ast.ClassDef):
            yield from _of(child, names | {child.name})
        elif isinstance(child, ast.If | ast.Try):
            yield from _of(child, names)


def _shown(function: ast.FunctionDef, names: set[str]) -> str:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node, False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    function.decorator_list = []
    imports = (ast.Import, ast.ImportFrom)
    function.body = [line for line in function.body if not isinstance(line, imports)] or [ast.Pass()]
    return re.sub(
        rf"\b_*({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})_*\b", NAME, ast.unparse(function)
    )


def held_out(text: str, share: float = 0.2) -> bool:
    """Decides by a hash of the text, so that the split is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") < share * 2**64


def baseline(rows: list[tuple[str, str, str]]) -> dict[str, dict[str, float]]:
    """Returns the baselines' figures on the held-out rows; a row is (split, label, text)."""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    from sklearn.pipeline import make_pipeline

    part = lambda split: ([row[2] for row in rows if row[0] == split], [row[1] for row in rows if row[0] == split])
    (train, labels), (held, true) = part("train"), part("validation")
    tfidf = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    models = {
        "most frequent": DummyClassifier(strategy="most_frequent"),
        "TF-IDF + logistic regression": make_pipeline(tfidf, LogisticRegression(C=100, max_iter=1000)),
    }
    figures = {}
    for name, model in models.items():
        said = model.fit(train, labels).predict(held)
        figures[name] = {
            "accuracy": accuracy_score(true, said),
            "macro_f1": f1_score(true, said, average="macro"),
            "matthews": matthews_corrcoef(true, said),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/functions.csv"))
    parser.add_argument("--modules", type=int, default=12)
    arguments = parser.parse_args()
    rows = [("validation" if held_out(text) else "train", label, text) for text, label in functions(arguments.modules)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("split", "label", "text"), *rows])
    for split in ("train", "validation"):
        counts = Counter(label for given, label, _ in rows if given == split)
        print(f"{split}: {counts.total()} functions: {', '.join(f'{name} {n}' for name, n in counts.most_common())}")
    for name, figures in baseline(rows).items():
        print(f"{name:30} " + "  ".join(f"{figure} {value:.4f}" for figure, value in figures.items()))
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
