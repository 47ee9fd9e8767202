"""Converts checkpoint folders of Hugging Face to workdirs and back."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from data.examples import kinds
from data.tokens import hub
from data.tokens.tokenizer import Tokenizer
from launch.conversion import adapters
from launch.program.checking import ConfigError
from launch.run import models, restore, workdirs
from launch.run.workdirs import Workdir
from model import architectures, axes, count
from model.adapt.lora import Lora
from model.compress import quantize
from model.config import ModelConfig
from model.interop import registry
from model.interop.config_json import classes
from model.interop.files import writer
from model.interop.files.folder import Folder
from train import state


def import_folder(path: Path, workdir: Path, draw_pooler: bool = False) -> None:
    """Reads a checkpoint folder and writes it as a workdir.

    Args:
      path: the folder: config.json, safetensors and a tokenizer.
      workdir: the new workdir.
      draw_pooler: give an encoder without a pooler a random one, as transformers does.

    Raises:
      ConfigError: `workdir` is in use, or the tokenizer does not fit the model.
      CheckpointFolderError: the folder is incomplete or damaged, or its model is not supported.
    """
    folder = Folder(path)
    name, config = registry.read_config(folder)
    words, labels = hub.read(path, folder.config()), _labels(config, folder.config())
    if words.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer has {words.vocab_size} tokens, but config.json says vocab_size {config.vocab_size}"
        )
    workdirs.check_new(workdir)
    with axes.use_mesh(restore.spread(config)):
        model = registry.read(
            folder, name, state.abstract_model(lambda rngs: architectures.make(config, rngs)), draw_pooler
        )
    record: dict[str, Any] = {
        "model": dataclasses.asdict(config),
        "model_type": name,
        "imported_from": str(path.absolute()),
    }
    if registry.changes_weights(folder, name):
        record["imported_changed"] = True
    workdirs.create(workdir, record, model, words, labels)
    if dropped := hub.settings_of_generation(path):
        print(f"note: these settings of generation_config.json are dropped: {', '.join(dropped)}")
    held = registry.described_precision(folder, name, config)
    print(f"{path}: {name}, {count.num_params(config):,} parameters in {held} -> {workdir}")


def _labels(config: ModelConfig, given: dict) -> dict | None:
    """Returns the content of labels.json (data/examples/labels.py) for a classifier; None for other models.

    Args:
      config: the architecture.
      given: the content of the folder's config.json.
    """
    if config.head not in ("sequence", "token"):
        return None
    read = "first" if config.architecture == "encoder" else "last"
    if config.head == "sequence" and config.num_labels == 1:
        return {"kind": "number", "read": read}
    names = classes.names(given) or [f"LABEL_{i}" for i in range(config.num_labels)]
    return {"kind": "class" if config.head == "sequence" else "token", "names": names, "read": read}


def export(workdir: Path, path: Path, step: str = "", merge: bool = False, into: str = "original") -> None:
    """Writes the model of a workdir as a checkpoint folder.

    Args:
      workdir: of the model.
      path: the folder to write; it must not exist, or be empty.
      step: which checkpoint (Checkpoints.find).
      merge: merge the adapter of the workdir into its base.
      into: which weights of the base to merge into (adapters.INTO).

    Raises:
      ConfigError: the workdir holds an adapter and `merge` is false, or it can't be merged.
    """
    run = Workdir(workdir)
    config, method = run.architecture, run.tuning.method
    if not merge and method is not None:
        way = "an adapter of this method can be neither merged nor written for peft"
        if isinstance(method, Lora):
            way = "--merge puts it into the base's parameters, --to_peft writes it alone"
        raise ConfigError(
            f"{workdir} holds an adapter over a base ({run.config.adapt.method}), but a checkpoint folder needs "
            f"a whole model: {way}"
        )
    name = run.config.get("model_type") or registry.family_of(config)
    fields, files, words = _described(run)
    mesh = restore.spread(config)
    model = adapters.merged(run, mesh, step, into) if merge else restore.for_inference(run, mesh, step)[1]
    with axes.use_mesh(mesh):
        if run.compression is not None:
            model = quantize.dequantized(model, config.param_dtype)
            print(f"note: the weights in {workdir} are in {run.compression.kind}; they become {config.param_dtype}")
        registry.write(model, name, path, files, **fields)
    if jax.process_index() == 0:
        print(f"{workdir} -> {path}: {name}")
        if name == "qwen2" and not words.published:
            print("note: AutoTokenizer of transformers 5 loads Qwen's instead of this one; use PreTrainedTokenizerFast")


def _described(run: Workdir) -> tuple[dict, dict[str, str], Tokenizer]:
    """Returns what is exported besides the weights, so that transformers ends an answer where launch.generate does.

    Returns:
      (fields of config.json besides the architecture, contents of the other files by name, the tokenizer as exported).
    """
    config, words = run.architecture, run.tokenizer
    encoder = config.architecture == "encoder_decoder"
    words = kinds.hand_on(run.config.data, words, encoder)
    at_end = models.objective(run.config).scores_end
    if config.architecture == "decoder" and config.head == "sequence" and not at_end:
        words = hub.padded(words)  # transformers finds a text's last token by its padding
    fields: dict[str, Any] = words.special.config
    if at_end:  # a padding token that is also the end token would hide the end, and move the score one token forward
        fields = fields | {"pad_token_id": None}
        print(
            "note: this export has no padding token, so transformers scores one text at a time; for batches, set one "
            "that differs from the end token"
        )
    files = hub.files(words)
    if encoder:
        fields = fields | {"decoder_start_token_id": words.start_id}
    if config.head == "language_model":
        files["generation_config.json"] = writer.json_text({k: i for k, i in fields.items() if i is not None})
    if "names" in (labels := run.labels or {}):
        names = labels["names"]
        fields = fields | {"id2label": {str(i): name for i, name in enumerate(names)}}
        fields = fields | {"label2id": {name: i for i, name in enumerate(names)}}
    return fields, files, words
