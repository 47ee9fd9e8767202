"""Rules that keep the code readable: allowed imports, layers inside a package, short files, complete READMEs."""

import ast
import collections
import graphlib
import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "data", "train", "configs", "launch")
MAY_IMPORT = {
    "model": {"model"},
    "data": {"data"},
    "train": {"train", "model", "data"},
    "configs": {"configs"},
    "launch": {"launch", "train", "model", "data", "configs"},  # of configs, only the defaults and ranges
}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path):
    """Yields the dotted names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_stands_below(package):
    found = {(module(path), name) for path in FILES for name in imports(path) if module(path).startswith(package)}
    assert found
    wrong = [(a, b) for a, b in found if b.split(".")[0] in PACKAGES and b.split(".")[0] not in MAY_IMPORT[package]]
    assert not wrong


def test_configs_are_data():
    allowed = {"ml_collections", "configs"}
    roots = {
        name.split(".")[0] for path in FILES if "configs" in path.relative_to(ROOT).parts for name in imports(path)
    }
    assert roots and roots <= allowed


def test_programs_know_no_config_but_its_defaults_and_what_numbers_may_be():
    """Programs read a config from the ConfigDict that a flag chooses, and import only defaults and ranges."""
    found = {name for path in FILES if module(path).startswith("launch.") for name in imports(path)}
    tables = {"defaults": ("DEFAULTS",), "ranges": ("RANGES", "OTHERS")}
    allowed = {f"configs.parts.{file}" for file in tables}
    allowed |= {f"configs.parts.{file}.{table}" for file, names in tables.items() for table in names}
    assert {name for name in found if name.split(".")[0] == "configs"} == allowed


@pytest.mark.parametrize("package", PACKAGES)
def test_files_form_floors(package):
    """No imports form a circle."""
    modules = {module(path): path for path in FILES if module(path).split(".")[0] == package}
    graph = {name: {found for found in imports(path) if found in modules} - {name} for name, path in modules.items()}
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"{package}: {error.args[1]} import each other")
    assert len(order) == len(modules)


# The folders of a package from the bottom layer up; "programs" are the files beside them. A file may import from its
# own folder and from lower layers.
FLOORS = {
    "launch": (
        "program",
        "hosts",
        "run",
        "plans answers",
        "training conversion judging",
        "comparing",
        "programs",
        "sweeps",
    )
}


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_form_floors(package):
    height = {room: at for at, rooms in enumerate(FLOORS[package]) for room in rooms.split(" ")}
    room = lambda name: (
        name.split(".")[1] if name.count(".") > 1 else "sweeps" if name == "launch.sweep" else "programs"
    )
    modules = {module(path) for path in FILES if path.name != "__init__.py" and module(path).startswith(f"{package}.")}
    used = [
        (module(path), name) for path in FILES if module(path) in modules for name in imports(path) if name in modules
    ]
    assert used
    wrong = [(a, b) for a, b in used if room(a) != room(b) and height[room(a)] <= height[room(b)]]
    assert not wrong


def test_nothing_that_is_read_is_executed():
    """No module imports or calls what could run code from a file. Chat templates run in jinja2's sandbox instead.

    One program may: the one that runs inside the sandbox, where nothing else imports it.
    """
    modules = {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "marshal",
        "shelve",
        "yaml",
        "torch",
        "transformers",
    }
    calls = {"eval", "exec", "compile", "__import__"}
    inside = ROOT / "train" / "align" / "inside_sandbox.py"
    assert inside.exists() and not [path for path in FILES for name in imports(path) if "inside_sandbox" in name]
    found = []
    for path in FILES:
        if path == inside:
            continue
        found += [(path, name) for name in imports(path) if name.split(".")[0] in modules]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                allowing = [k for k in node.keywords if k.arg in ("allow_pickle", "trust_remote_code")]
                found += [(path, called)] * (called in calls) + [(path, k.arg) for k in allowing]
    assert not found


def test_no_file_is_long():
    files = [*FILES, *(ROOT / "tests").rglob("*.py")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 300}
    assert not long


def test_top_level_is_the_agreed_one():
    top = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert top == {"README.md", "LICENSE", "requirements.txt", "pyproject.toml", "tests", *PACKAGES}


def test_license_is_apache_2_unmodified():
    as_in_the_wheels_of_jax = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == as_in_the_wheels_of_jax
    assert "[LICENSE](LICENSE)" in (ROOT / "README.md").read_text()


def test_commits_and_ci_check_by_the_same_commands():
    """Hooks run the same commands as CI, from the installed packages; pre-commit downloads nothing."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    hooks = {hook["id"]: hook for hook in hooks[0]["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    script = (ROOT / "tests" / "run.sh").read_text()
    for line in ("ruff check", "ruff format", "mypy"):
        assert re.search(rf"^{line}\b", script, re.MULTILINE)
        assert hooks[line.replace(" check", "").replace(" ", "-")]["entry"].startswith(line)
    assert hooks["structure"]["entry"].endswith("tests/test_structure.py")
    assert hooks["shellcheck"]["types"] == ["shell"]  # CI runs it in tests/launch/pods/test_launchers.py


def test_every_file_is_type_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert {*settings["files"]} == {*PACKAGES}
    assert not [entry for entry in settings["overrides"] if entry.keys() != {"module", "ignore_missing_imports"}]
    source = "\n".join(path.read_text() for path in FILES)
    assert not re.search(r"# (type: ignore|mypy:)", source)


def tracked():
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def listed(readme):
    """Returns (the files that the tree in a README names, their folders)."""
    block = re.search(r"## The tree\n.*?```\n(.*?)```", readme.read_text(), re.DOTALL)[1]
    files, all_folders, folders = [], [], []
    for line in filter(str.strip, block.splitlines()):
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
            all_folders.append("".join(folders))
        else:
            files.append("".join(folders) + name)
            assert len(line.split()) > 2, f"the tree of {readme} does not describe {name}"
    return files, all_folders


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_readme_trees_are_true(package):
    """The tree in a package's README names every file once and describes it."""
    files = [name.removeprefix(f"{package}/") for name in tracked() if name.startswith(f"{package}/")]
    files = [name for name in files if not name.endswith("__init__.py")]
    there, _ = listed(ROOT / package / "README.md")
    assert not (missing := sorted({*files} - {*there})), f"{package}/README.md does not name {missing}"
    assert not (gone := sorted({*there} - {*files})), (
        f"{package}/README.md names {gone}, which git does not track (git add)"
    )
    assert len(there) == len({*there})


def test_readme_tree_names_the_packages():
    files, folders = listed(ROOT / "README.md")
    names = [name for name in tracked() if not name.startswith(".")]
    assert sorted(files) == sorted(name for name in names if "/" not in name)
    assert sorted(folders) == sorted({f"{name.split('/')[0]}/" for name in names if "/" in name})


def test_no_folder_is_crowded():
    """launch/ and configs/ may have more files, because commands name them: python -m launch.NAME, configs/NAME.py."""
    counts = collections.Counter(
        str(Path(name).parent) for name in tracked() if not name.startswith(".") and not name.endswith("__init__.py")
    )
    assert not {
        folder: count for folder, count in counts.items() if count > (30 if folder in ("launch", "configs") else 15)
    }


@pytest.mark.parametrize("readme", ["README.md", *(f"{package}/README.md" for package in (*PACKAGES, "tests"))])
def test_links_of_readmes_lead_somewhere(readme):
    text = (ROOT / readme).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        path = (ROOT / readme).parent / file if file else ROOT / readme
        assert path.exists(), f"{readme} links to {target}, which does not exist"
        if heading:
            headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            names = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}
            assert heading in names, f"{readme} links to {target}, but has no such heading"


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 12_000
