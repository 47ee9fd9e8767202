"""Convert models from and to checkpoints of Hugging Face, and low-rank adapters from and to peft.

    python -m launch.convert --from_hf=FOLDER --workdir=DIR     # import a folder as a workdir
    python -m launch.convert --workdir=DIR --to_hf=FOLDER       # config.json, safetensors, tokenizer, chat template

Low-rank adapters are read and written in peft's format, or merged into the model:

    python -m launch.convert --from_peft=FOLDER --base=BASE --workdir=DIR   # BASE: the workdir of the adapter's model
    python -m launch.convert --workdir=DIR --to_peft=FOLDER                 # adapter_config.json, safetensors
    python -m launch.convert --workdir=DIR --merge --to_hf=FOLDER           # a whole model
    python -m launch.convert --workdir=DIR --merge --to_workdir=NEW         # a whole model, as a workdir
    python -m launch.convert --workdir=DIR --merge --merge_into=quantized --to_hf=FOLDER   # an adapter over nf4

A model's folder needs config.json, safetensors and a tokenizer (data/tokens/hub.py). Tensors are read and written one
at a time, and the model is split over as many devices as possible.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.convert")

from launch.program import runtime

runtime.configure()

from pathlib import Path

from absl import flags

from launch.conversion import adapters
from launch.conversion.hugging_face import export, import_folder
from launch.program.checking import ConfigError
from launch.run import early_stopping, places
from launch.run.workdirs import Workdir
from model.interop.files import writer

flags.DEFINE_string("from_hf", None, "Checkpoint folder to read.")
flags.DEFINE_string("to_hf", None, "Folder to write the model to; it must not exist, or be empty.")
flags.DEFINE_string("from_peft", None, "Folder of an adapter to read; needs --base.")
_BASE = flags.DEFINE_string("base", None, "Workdir of the model under the adapter of --from_peft.")
flags.DEFINE_string("to_peft", None, "Folder to write the adapter to; it must not exist, or be empty.")
flags.DEFINE_string("to_workdir", None, "New workdir to write the merged model to.")
_DRAW_POOLER = flags.DEFINE_bool(
    "draw_pooler", False, "With --from_hf: give an encoder without a pooler a random one, as transformers does."
)
_MERGE = flags.DEFINE_bool("merge", False, "Merge the adapter into the parameters of its base.")
_MERGE_INTO = flags.DEFINE_enum(
    "merge_into",
    "original",
    adapters.INTO,
    "For an adapter that was trained over quantized weights: --merge into the original weights, or into the quantized "
    "ones, dequantized to the dtype of the original ones.",
)
_STEP = early_stopping.define_step()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Workdir to export, or the new one for an import. Required.", required=True
)


# What to do, by the flag that names the other place: functions of (--workdir, the other place).
WAYS = {
    "from_hf": lambda workdir, folder: import_folder(folder, workdir, _DRAW_POOLER.value),
    "to_hf": lambda workdir, folder: export(workdir, folder, _STEP.value, _MERGE.value, _MERGE_INTO.value),
    "from_peft": lambda workdir, folder: adapters.from_peft(
        folder, Workdir(Path(str(_BASE.value)).absolute()), workdir, _STEP.value
    ),
    "to_peft": lambda workdir, folder: adapters.to_peft(Workdir(workdir), folder, _STEP.value),
    "to_workdir": lambda workdir, new: adapters.merge(Workdir(workdir), new.absolute(), _STEP.value, _MERGE_INTO.value),
}


def _check(way: str) -> None:
    """Checks that the other flags apply to this conversion.

    Raises:
      ConfigError: a flag is missing, or does not apply.
    """
    if (_BASE.value is not None) != (way == "from_peft"):
        raise ConfigError(
            "--base goes with --from_peft, and --from_peft needs it: the workdir of the model under the adapter"
        )
    if _STEP.value and way == "from_hf":
        raise ConfigError("--step chooses a checkpoint of a run, but a folder of --from_hf has only one")
    if _MERGE.value not in {"to_hf": (True, False), "to_workdir": (True,)}.get(way, (False,)):
        raise ConfigError("--merge needs --to_workdir or --to_hf, and --to_workdir needs --merge")
    if _DRAW_POOLER.value and way != "from_hf":
        raise ConfigError("--draw_pooler needs --from_hf: it adds a part that an imported encoder lacks")
    if _MERGE_INTO.value != "original" and not _MERGE.value:
        raise ConfigError("--merge_into needs --merge: it says which weights the adapter is merged into")


def main() -> None:
    given = [name for name in WAYS if flags.FLAGS[name].value is not None]
    if len(given) != 1:
        raise ConfigError(f"give one of --{', --'.join(WAYS)}")
    (way,) = given
    _check(way)
    workdir = places.named(_WORKDIR.value)
    text = str(flags.FLAGS[way].value)
    places.named(text, f"--{way}")  # refuses an empty one
    other = Path(text)  # as the user wrote it, for messages
    if way in ("to_hf", "to_peft"):
        writer.check_new(other)  # before a model is read
    WAYS[way](workdir, other)


if __name__ == "__main__":
    runtime.run(main)
