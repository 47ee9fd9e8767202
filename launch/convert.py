"""Hugging Face checkpoints in and out.

    python -m launch.convert --from_hf=FOLDER --workdir=DIR     # a folder -> a workdir to generate from and export
    python -m launch.convert --workdir=DIR --to_hf=FOLDER       # config.json, safetensors, tokenizer

A folder needs config.json, safetensors and a tokenizer (data/hub_tokenizer.py). Tensors pass one at a time, onto as
many devices as the model can be split over.
"""

from launch import runtime

runtime.configure()

import contextlib
import dataclasses
import json
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from data import hub_tokenizer
from launch import early_stopping, restore, workdirs
from launch.checking import ConfigError
from model import axes, count, families
from model.config import ModelConfig
from model.interop import registry
from model.interop.folder import Folder
from train import state
from train.checkpoint import Checkpoints

_FROM = flags.DEFINE_string("from_hf", None, "A checkpoint folder to read.")
_TO = flags.DEFINE_string("to_hf", None, "A folder to write; it must not exist or be empty.")
_STEP = early_stopping.define_step()
_WORKDIR = flags.DEFINE_string("workdir", None, "A run of launch.train, or where to put what is read.")


def import_folder(path: Path, workdir: Path) -> None:
    folder = Folder(path)
    name, config = registry.read_config(folder)
    words = hub_tokenizer.read(path, folder.config())
    if words.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer has {words.vocab_size} tokens, but config.json says vocab_size {config.vocab_size}"
        )
    if (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds a run already; use a new --workdir")
    with axes.use_mesh(spread(config)):
        model = registry.read(folder, name, state.abstract_model(lambda rngs: families.make(config, rngs)))
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir)
    checkpoints.save_model(0, model)
    checkpoints.close()
    words.save(workdir / "tokenizer.json")
    if config.head in ("sequence", "token"):
        (workdir / workdirs.LABELS).write_text(json.dumps(_labels(config, folder.config()), ensure_ascii=False) + "\n")
    record = ConfigDict({"model": dataclasses.asdict(config), "model_type": name})
    (workdir / "config.json").write_text(json.dumps(json.loads(record.to_json()), indent=2) + "\n")
    print(f"{path}: {name}, {count.num_params(config):,} parameters -> {workdir}")


def _labels(config: ModelConfig, given: dict) -> dict:
    """What labels.json says of a classifier whose config.json is `given` (data/labels.py)."""
    read = "first" if config.architecture == "encoder" else "last"
    if config.head == "sequence" and config.num_labels == 1:
        return {"kind": "number", "read": read}
    names = {int(i): str(name) for i, name in (given.get("id2label") or {}).items()}
    found = [names.get(i, f"LABEL_{i}") for i in range(config.num_labels)]
    return {"kind": "class" if config.head == "sequence" else "token", "names": found, "read": read}


def export(workdir: Path, path: Path, step: str = "") -> None:
    config, words = workdirs.contents(workdir)
    name = workdirs.recorded_config(workdir).get("model_type") or registry.family_of(config)
    ids = words.special.config
    if config.architecture == "encoder_decoder":
        ids = ids | {"decoder_start_token_id": words.start_id}
    if "names" in (labels := workdirs.labels(workdir) or {}):
        names = labels["names"]
        ids = ids | {"id2label": {str(i): name for i, name in enumerate(names)}}
        ids = ids | {"label2id": {name: i for i, name in enumerate(names)}}
    mesh, model, _ = restore.restore_for_inference(workdir, spread(config), step)
    with axes.use_mesh(mesh):
        registry.write(model, name, path, hub_tokenizer.files(words), **ids)
    if jax.process_index() == 0:
        print(f"{workdir} -> {path}: {name}")
        if name == "qwen2" and not words.published:
            print("AutoTokenizer of transformers 5 puts Qwen's own in its place: load it as PreTrainedTokenizerFast")


def spread(config: ModelConfig) -> jax.sharding.Mesh:
    """An fsdp mesh of as many devices as the model can be split over."""
    devices = jax.devices()
    for size in range(len(devices), 1, -1):
        with contextlib.suppress(ValueError):
            config.check_mesh({"fsdp": size})
            return axes.make_mesh({"fsdp": size}, devices[:size])
    return axes.make_mesh({"fsdp": 1}, devices[:1])


def main() -> None:
    if (_FROM.value is None) == (_TO.value is None):
        raise ConfigError("give either --from_hf or --to_hf")
    workdir = Path(_WORKDIR.value).absolute()
    if _FROM.value is not None:
        import_folder(Path(_FROM.value), workdir)
    else:
        export(workdir, Path(_TO.value), _STEP.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    runtime.run(main)
