"""Tests the commands of the READMEs: every flag exists, and every config passes all checks before data preparation.

No data are prepared and nothing trains. If a command reads a workdir, an earlier command must create it; here that
workdir holds a small model.
"""

import re
import shlex
from pathlib import Path

import jax
from absl import flags
from flax import nnx
from ml_collections import config_flags

from configs import quickstart
from data.checked import checked
from data.tokens import tokenizer
from launch.conversion import compressing
from launch.run import build, models, workdirs
from launch.run.workdirs import Workdir
from launch.sweeps import search, trials
from launch.training import rewarding, runs
from model import architectures, axes
from model.compress.quantize import Settings

ROOT = Path(__file__).resolve().parents[2]
# In reading order, because a command may use what an earlier one creates.
READMES = (
    "README.md",
    *(f"{package}/README.md" for package in ("launch", "data", "model", "train", "configs", "tests")),
)
SMALL = dict(num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, vocab_size=0)


def commands():
    """Yields (program, words) of every command of launch/ in the READMEs, in their order."""
    for readme in READMES:
        text = (ROOT / readme).read_text().replace("\\\n", "")
        for line in re.findall(r"^    python -m launch\.(.*)", text, re.MULTILINE):
            program, *words = shlex.split(line, comments=True)
            yield program, words


def flags_of(program):
    """Returns the names of a program's flags, found in its source."""
    source = next((ROOT / "launch").rglob(f"{program}.py")).read_text()
    found = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)) | ({"step"} if "define_step()" in source else set())
    for other in re.findall(r"adopt_module_key_flags\((\w+)\)", source):
        found |= flags_of(other)
    return found | flags_of("train") if program == "sweep" else found


def parsed(words):
    """Returns (config, fields that the command sets)."""
    found = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=found, sys_argv=words)
    found(["program", *words], known_only=True)
    return found.config, config_flags.get_override_values(found["config"])


def small_base(workdir):
    """Writes a workdir like one of configs/quickstart.py, but with a small model."""
    config, words = quickstart.get_config(), tokenizer.train((), "byte")
    config.model.update(SMALL)
    model = architectures.make(models.model_config(config, words.vocab_size), nnx.Rngs(0))
    workdirs.create(workdir, config.to_dict(), model, words)


def without_devices(config):
    """Returns an abstract mesh of the size that the config asks for."""
    sizes = {name: max(size, 1) for name, size in config.mesh.items()}
    return jax.sharding.AbstractMesh(tuple(sizes[name] for name in axes.MESH_AXES), axes.MESH_AXES)


def test_commands_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "held_out.jsonl").symlink_to(ROOT / "data" / "suites" / "safety" / "held_out.jsonl")
    monkeypatch.setattr(build, "mesh", without_devices)
    monkeypatch.setattr(build, "prepare", lambda fields, directory, encoder, prefix: checked(fields, encoder))
    monkeypatch.setattr(rewarding.scorer, "is_reward_model", lambda run: True)  # runs/reward holds the small model, too
    (tmp_path / "rewards.py").write_text("def short(prompt, completion, columns): return 1.0")
    small_base(tmp_path / "runs" / "quickstart")  # which launch/quickstart.sh trains
    programs = []
    for program, words in commands():
        print(program, words)  # to show which one fails
        given = [word for word in words if word.startswith("--")]
        names = dict(re.match(r"--([\w.]+)=?(.*)", word, re.DOTALL).groups() for word in given)
        unknown = {name for name in names if not name.startswith("config.")} - flags_of(program)
        assert not unknown, (program, words)
        workdir = Path(names.get("workdir", "none"))
        if program in ("train", "prepare"):
            config, chosen = parsed(words)
            build.data(runs.checked(config, Workdir(workdir), chosen).config, workdir)
        if program == "sweep":
            config, chosen = parsed(words)
            trials.Trials(config, search.read(names["search"]), workdir, chosen=chosen)
        if program == "compress":
            form = Settings.of({"method": names["method"]})
            compressing.compress(Workdir(workdir), Path(names["out"]), form, dtype=names.get("dtype"))
        if not workdir.exists() and (program == "train" or "from_hf" in names or "from_peft" in names):
            workdir.parent.mkdir(exist_ok=True)
            workdir.symlink_to(tmp_path / "runs" / "quickstart")
        read = [names[name] for name in ("workdir", "base", "adapter") if name in names]
        read = [] if program == "sweep" else [*read, *(word for word in words if word not in given)]
        for path in read:
            assert (Path(path) / "config.json").exists(), f"nothing made {path}"
        programs.append(program)
    assert {"train", "sweep", "prepare", "generate", "evaluate", "classify", "convert"} <= {*programs}
