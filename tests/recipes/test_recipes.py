"""The recipes of README.md work as printed, in a copy of the repository: what they add trains, reads and runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).with_name("README.md").read_text()
# "New file `PATH`, ...:" or "In `PATH`, ...:", then a block of code.
BLOCK = re.compile(r"^(New file|In) `(\S+)`[^`]*:\n\n```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.xdist_group("recipes")


def changed(text: str, diff: str) -> str:
    """Returns `text` after a diff without line numbers; each of its parts begins at the first line that is the same."""
    lines, place = text.splitlines(), 0
    for line in diff.splitlines():
        mark, rest = line[:1], line[1:]
        if mark == "+":
            lines.insert(place, rest)
            place += 1
        else:
            assert rest in lines[place:], f"no line {rest!r}"
            place = lines.index(rest, place)
            if mark == "-":
                del lines[place]
            else:
                place += 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The tracked files with all recipes applied, in a repository of its own."""
    folder = tmp_path_factory.mktemp("recipes") / "meshlm"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for how, name, _, code in BLOCK.findall(RECIPES):
        path = folder / name
        assert path.exists() == (how == "In"), name
        path.write_text(code if how == "New file" else changed(path.read_text(), code))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    return folder


def run(folder, *words, works=True):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert (done.returncode == 0) == works, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_block_of_code_is_applied():
    assert len(BLOCK.findall(RECIPES)) == RECIPES.count("```python\n") + RECIPES.count("```diff\n") > 4


def test_an_objective_and_a_kind_of_examples(copy):
    """They train, evaluate by themselves, and are checked like all others."""
    rows = [{"prompt": f"{i} + 1", "answer": str(i + 1), "rating": i % 3} for i in range(60)]
    (copy / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["-m", "launch.train", "--config=configs/rated.py", "--config.data.path=rated.jsonl"]
    train += ["--workdir=runs/rated", "--config.steps=2", "--config.eval_every=2", "--config.data.seq_len=32"]
    train += ["--config.model.num_layers=1", "--config.model.embed_dim=32", "--config.batch_size=8"]
    train += ["--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.head_dim=16"]
    train += ["--config.optimizer.warmup_steps=0", "--config.data.tokenizer.kind=byte", "--config.log_every=1"]
    assert "sharpness is -1.0; it must be a number of at least 0" in run(
        copy, *train, "--config.objective.sharpness=-1.0", works=False
    )
    run(copy, *train)
    lines = [json.loads(line) for line in (copy / "runs/rated/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "rated_loss" in line]
    assert len(steps) == 2 and all(line["rated_loss"] != line["loss"] for line in steps)
    assert any("validation/loss" in line for line in lines)


def test_a_model_family(copy):
    """It has the logits of transformers, and its field table has every field of transformers' config class."""
    tests = ["tests/model/interop/tables/test_families.py", "tests/model/interop/config_json/test_fields.py"]
    said = run(copy, "-m", "pytest", "-p", "no:cacheprovider", *tests, "-k", "seed_oss", "-rA")
    assert "test_fields.py" in said and "test_families.py" in said


def test_a_program(copy, tmp_path):
    assert "python -m launch.count_tokens" in run(copy, "-m", "launch")
    run(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/launch/program/test_programs.py", "-k", "count_tokens")
    assert "tmp" in run(copy, "-m", "launch.count_tokens", f"--workdir={tmp_path}", "--text=a", works=False)


def test_the_house_rules_hold(copy):
    """But for the trees, whose lines a recipe leaves to its reader: the test names all files that lack one."""
    said = run(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_structure.py", works=False)
    # A set: pytest's summary repeats the messages in full where the environment has CI set.
    named = set(re.findall(r"AssertionError: (\S+/README.md) does not name \[(.*?)\]", said))
    new = {name for how, name, *_ in BLOCK.findall(RECIPES) if how == "New file"}
    files = {f"{readme.split('/')[0]}/{file}" for readme, some in named for file in re.findall(r"'(.*?)'", some)}
    assert files == new
    assert f"{len(named)} failed" in said
    ruff = subprocess.run(["ruff", "check", *new], cwd=copy, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout
    ruff = subprocess.run(["ruff", "format", "--check", *new], cwd=copy, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr
