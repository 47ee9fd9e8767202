"""Read and write checkpoints of Hugging Face, and low-rank adapters of peft.

    python -m launch.convert --from_hf=FOLDER --workdir=DIR     # a folder -> a workdir to generate from and export
    python -m launch.convert --workdir=DIR --to_hf=FOLDER       # config.json, safetensors, tokenizer, chat template

Low-rank adapters are read and written as peft keeps them, or are merged into the model:

    python -m launch.convert --from_peft=FOLDER --base=BASE --workdir=DIR   # BASE: the workdir of the adapter's model
    python -m launch.convert --workdir=DIR --to_peft=FOLDER                 # adapter_config.json, safetensors
    python -m launch.convert --workdir=DIR --merge --to_hf=FOLDER           # a whole model
    python -m launch.convert --workdir=DIR --merge --to_workdir=NEW         # the same, as a workdir
    python -m launch.convert --workdir=DIR --merge --merge_into=quantized --to_hf=FOLDER   # of an adapter over nf4

A folder of a model needs config.json, safetensors and a tokenizer (data/tokens/hub.py). Tensors pass one at a time,
onto as many devices as the model can be split over.
"""

from launch.program import runtime

runtime.configure()

import dataclasses
from pathlib import Path

import jax
from absl import flags

from data.examples import chat_export, kinds
from data.tokens import hub
from data.tokens.tokenizer import Tokenizer
from launch.answers import prompts
from launch.program.checking import ConfigError
from launch.run import adapters, early_stopping, places, restore, workdirs
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

_FROM_HF = flags.DEFINE_string("from_hf", None, "Checkpoint folder to read.")
_TO_HF = flags.DEFINE_string("to_hf", None, "Folder to write the model to; it must not exist, or be empty.")
_FROM_PEFT = flags.DEFINE_string("from_peft", None, "Folder of an adapter to read, with --base.")
_BASE = flags.DEFINE_string("base", None, "The workdir of the model that the adapter of --from_peft is for.")
_TO_PEFT = flags.DEFINE_string("to_peft", None, "Folder to write the adapter to; it must not exist, or be empty.")
_TO_WORKDIR = flags.DEFINE_string("to_workdir", None, "New workdir to write the merged model to.")
_DRAW_POOLER = flags.DEFINE_bool(
    "draw_pooler", False, "With --from_hf: give an encoder whose file has no pooler a random one, as transformers does."
)
_MERGE = flags.DEFINE_bool("merge", False, "Put the adapter into the parameters of its base.")
_MERGE_INTO = flags.DEFINE_enum(
    "merge_into",
    "original",
    adapters.INTO,
    "Where --merge puts an adapter that was trained over quantized weights: into the original ones, or into those, "
    "written out in the dtype of the original ones.",
)
_STEP = early_stopping.define_step()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Workdir of a run to write from, or a new one for what is read. Required."
)


def import_folder(path: Path, workdir: Path, draw_pooler: bool = False) -> None:
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
    record = {"model": dataclasses.asdict(config), "model_type": name, "imported_from": str(path.absolute())}
    if registry.changes_weights(folder, name):
        record["imported_changed"] = True
    workdirs.create(workdir, record, model, words, labels)
    if dropped := hub.settings_of_generation(path):
        print(f"note: these settings of generation_config.json are not kept: {', '.join(dropped)}")
    held = registry.described_precision(folder, name, config)
    print(f"{path}: {name}, {count.num_params(config):,} parameters in {held} -> {workdir}")


def _labels(config: ModelConfig, given: dict) -> dict | None:
    """labels.json (data/examples/labels.py) of a classifier whose config.json is `given`; None for other models."""
    if config.head not in ("sequence", "token"):
        return None
    read = "first" if config.architecture == "encoder" else "last"
    if config.head == "sequence" and config.num_labels == 1:
        return {"kind": "number", "read": read}
    names = classes.names(given) or [f"LABEL_{i}" for i in range(config.num_labels)]
    return {"kind": "class" if config.head == "sequence" else "token", "names": names, "read": read}


def export(workdir: Path, path: Path, step: str = "", merge: bool = False, into: str = "original") -> None:
    run = Workdir(workdir)
    config, method = run.architecture, run.tuning.method
    if not merge and method is not None:
        way = "it can neither be merged nor be written for peft"
        if isinstance(method, Lora):
            way = "--merge puts the adapter into the base's parameters, --to_peft writes it alone"
        raise ConfigError(
            f"{workdir} holds what was trained over a base ({type(method).__name__.lower()}), and a checkpoint folder "
            f"a whole model: {way}"
        )
    name = run.config.get("model_type") or registry.family_of(config)
    fields, files, words = _described(run)
    mesh = restore.spread(config)
    model = adapters.merged(run, mesh, step, into) if merge else restore.for_inference(run, mesh, step)[1]
    with axes.use_mesh(mesh):
        if run.compression is not None:
            model = quantize.dequantized(model, config.param_dtype)
            print(f"note: the weights in {workdir} are in {run.compression.kind}; here they are {config.param_dtype}")
        registry.write(model, name, path, files, **fields)
    if jax.process_index() == 0:
        print(f"{workdir} -> {path}: {name}")
        if name == "qwen2" and not words.published:
            print("AutoTokenizer of transformers 5 puts Qwen's own in its place: load it as PreTrainedTokenizerFast")


def _described(run: Workdir) -> tuple[dict, dict[str, str], Tokenizer]:
    """(fields of config.json beside those of the architecture, files beside it, the tokenizer as it is written) of what
    is exported. With these transformers ends an answer where launch.generate does."""
    config, words = run.architecture, run.tokenizer
    encoder = config.architecture == "encoder_decoder"
    if prompts.trained_on(run.config) == "chat":
        words = chat_export.hand_on(words, kinds.checked(run.config.data)["chat"], encoder)
    if config.architecture == "decoder" and config.head == "sequence":
        words = hub.padded(words)  # transformers finds the last token of a text by what follows it
    fields, files = words.special.config, hub.files(words)
    if encoder:
        fields = fields | {"decoder_start_token_id": words.start_id}
    if config.head == "language_model":
        files["generation_config.json"] = writer.json_text({k: i for k, i in fields.items() if i is not None})
    if "names" in (labels := run.labels or {}):
        names = labels["names"]
        fields = fields | {"id2label": {str(i): name for i, name in enumerate(names)}}
        fields = fields | {"label2id": {name: i for i, name in enumerate(names)}}
    return fields, files, words


def main() -> None:
    others = {"from_hf": _FROM_HF, "to_hf": _TO_HF, "from_peft": _FROM_PEFT, "to_peft": _TO_PEFT}
    others |= {"to_workdir": _TO_WORKDIR}
    given = [name for name, flag in others.items() if flag.value is not None]
    if len(given) != 1:
        raise ConfigError(f"give one of --{', --'.join(others)}")
    if (_BASE.value is not None) != (given == ["from_peft"]):
        raise ConfigError("--from_peft, and no other, needs --base: the workdir of the model that the adapter is for")
    if _STEP.value and given == ["from_hf"]:
        raise ConfigError("--step is of a run's checkpoints; a folder of --from_hf has none")
    if _MERGE.value not in {"to_hf": (True, False), "to_workdir": (True,)}.get(given[0], (False,)):
        raise ConfigError("--merge needs --to_workdir or --to_hf, and --to_workdir needs --merge")
    if _DRAW_POOLER.value and given != ["from_hf"]:
        raise ConfigError("--draw_pooler is for --from_hf: it adds a part that the file of an encoder lacks")
    if _MERGE_INTO.value != "original" and not _MERGE.value:
        raise ConfigError("--merge_into says where --merge puts an adapter; it needs --merge")
    workdir, other = places.named(_WORKDIR.value), Path(others[given[0]].value)
    if given[0] in ("to_hf", "to_peft"):
        writer.check_new(other)  # before a model is read
    if given == ["from_hf"]:
        import_folder(other, workdir, _DRAW_POOLER.value)
    elif given == ["to_hf"]:
        export(workdir, other, _STEP.value, _MERGE.value, _MERGE_INTO.value)
    elif given == ["from_peft"]:
        adapters.from_peft(other, Workdir(Path(_BASE.value).absolute()), workdir, _STEP.value)
    elif given == ["to_peft"]:
        adapters.to_peft(Workdir(workdir), other, _STEP.value)
    else:
        adapters.merge(Workdir(workdir), other.absolute(), _STEP.value, _MERGE_INTO.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    runtime.run(main)
