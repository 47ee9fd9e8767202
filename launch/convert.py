"""Hugging Face checkpoints in and out.

    python -m launch.convert --from_hf=FOLDER --workdir=DIR     # a folder -> a workdir to generate from and export
    python -m launch.convert --workdir=DIR --to_hf=FOLDER       # config.json, safetensors, tokenizer

A folder needs config.json, safetensors and tokenizer.json. Tensors pass one at a time, onto all local devices.
"""

from launch import runtime

runtime.configure()

import dataclasses
import json
import shutil
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from data import tokenizer
from launch import build
from model import axes, count, families
from model.interop import registry
from model.interop.folder import Folder
from train import state
from train.checkpoint import Checkpoints

_FROM = flags.DEFINE_string("from_hf", None, "A checkpoint folder to read.")
_TO = flags.DEFINE_string("to_hf", None, "A folder to write; it must not exist or be empty.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A run of launch.train, or where to put what is read.")


def import_folder(path: Path, workdir: Path) -> None:
    folder = Folder(path)
    name, config = registry.read_config(folder)
    words = tokenizer.load(path / "tokenizer.json")
    if words.vocab_size > config.vocab_size:
        raise build.ConfigError(
            f"{path}: tokenizer.json has {words.vocab_size} tokens, but config.json says vocab_size {config.vocab_size}"
        )
    if (workdir / "config.json").exists():
        raise build.ConfigError(f"{workdir} holds a run already; use a new --workdir")
    mesh = axes.make_mesh({"fsdp": -1})
    with build.checking("this machine's devices"):
        config.check_mesh(dict(mesh.shape))
    with axes.use_mesh(mesh):
        model = registry.read(folder, name, state.abstract_model(lambda rngs: families.make(config, rngs)))
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir)
    checkpoints.save_model(0, model)
    checkpoints.close()
    shutil.copy(path / "tokenizer.json", workdir / "tokenizer.json")
    record = ConfigDict({"model": dataclasses.asdict(config), "model_type": name})
    (workdir / "config.json").write_text(json.dumps(json.loads(record.to_json()), indent=2) + "\n")
    print(f"{path}: {name}, {count.num_params(config):,} parameters -> {workdir}")


def export(workdir: Path, path: Path) -> None:
    mesh, model, words = build.restore_for_inference(workdir, axes.make_mesh({"fsdp": -1}))
    name = build.recorded_config(workdir).get("model_type") or registry.family_of(model.config)
    with axes.use_mesh(mesh):
        files = {"tokenizer.json": (workdir / "tokenizer.json").read_text()}
        registry.write(model, name, path, files, eos_token_id=words.eot_id, bos_token_id=words.eot_id)
    if jax.process_index() == 0:
        print(f"{workdir} -> {path}: {name}")


def main() -> None:
    if (_FROM.value is None) == (_TO.value is None):
        raise build.ConfigError("give either --from_hf or --to_hf")
    workdir = Path(_WORKDIR.value).absolute()
    if _FROM.value is not None:
        import_folder(Path(_FROM.value), workdir)
    else:
        export(workdir, Path(_TO.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    runtime.run(main)
