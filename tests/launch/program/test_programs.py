"""`python -m launch` lists every program, and the --help of each begins with what it does and an example."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_readme import flags_of

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = sorted(path for path in (ROOT / "launch").glob("*.py") if not path.name.startswith("__"))
named = pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()))


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


@named
def test_a_docstring_begins_with_what_the_program_does_and_an_example(path):
    what, gap, *rest = docstring(path).splitlines()
    assert re.fullmatch(r"[A-Z].*[a-z)]\.", what) and not gap
    examples = "\n".join(rest).partition("\n\n")[0]
    assert all(line.startswith("    ") for line in examples.splitlines())
    assert re.match(rf"    python -m launch\.{path.stem} (--|runs/)", examples)


@named
def test_a_program_that_is_started_by_its_path_gives_the_right_command(path):
    """Python then finds no module of the checkout, or a wrong one, so the check comes before all other imports."""
    body = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr)]
    assert ast.unparse(body[0].test) == "__package__ in (None, '')", "the first statement must be the check"
    assert f"start it from the checkout as: python -m launch.{path.stem}" in ast.unparse(body[0])


@named
def test_examples_use_existing_flags(path):
    text = docstring(path).replace("\\\n", "")
    for line in re.findall(rf"^    python -m launch\.{path.stem} (.*)", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        used = {word[2:].split("=")[0].split(".")[0] for word in words if word.startswith("--")}
        assert used and used <= flags_of(path.stem)
        for config in re.findall(r"--(?:config|search)=([^ :]+)", line):
            assert (ROOT / config).exists() or "NAME" in config, f"{config} is not there"


@named
def test_help_of_flags_is_a_sentence_and_says_what_is_required(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    called = lambda call: call.func.attr if isinstance(call.func, ast.Attribute) else ""
    strings = lambda call: [n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    # An enum's last string is one of its values, so the help is the longest string.
    texts = {strings(call)[0]: max(strings(call), key=len) for call in calls if called(call).startswith("DEFINE_")}
    assert all(re.fullmatch(r"[A-Z0-9][^\n]+[.]", text) for text in texts.values()), texts
    required = {name for call in calls if called(call).startswith("mark_flag") for name in strings(call)}
    required |= {strings(call)[0] for call in calls if any(k.arg == "required" for k in call.keywords)}
    assert required
    assert {name for name in required if name in texts and not texts[name].endswith("Required.")} == set()


def test_the_list_of_programs_is_complete_and_loads_no_jax():
    done = run("launch")
    assert done.returncode == 0 and not done.stderr
    for path in PROGRAMS:
        assert re.search(
            rf"^ *python -m launch\.{path.stem} +{re.escape(docstring(path).splitlines()[0])}$", done.stdout, re.M
        )
    assert done.stdout == run("launch", "--help").stdout
    loaded = "import runpy, sys; runpy.run_module('launch', run_name='__main__'); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_a_program_after_a_space_is_refused_with_the_right_command():
    done = run("launch", "train", "--workdir=runs/a b")
    assert done.returncode == 1 and not done.stdout
    assert "python -m launch.train '--workdir=runs/a b'" in done.stderr
    done = run("launch", "tarin")
    assert done.returncode == 1 and "python -m launch.train" in done.stderr and "tarin" in done.stderr


@pytest.mark.parametrize("program", ["checkpoints", "sweep"])
def test_help_begins_with_the_docstring(program):
    done = run(f"launch.{program}", "--help")
    assert not done.stderr
    assert done.stdout.strip().startswith(docstring(ROOT / "launch" / f"{program}.py").partition("\n\nflags:")[0][:200])
    assert "--workdir" in done.stdout and "Required." in done.stdout
