"""Quantize a model: write a new workdir whose checkpoint holds quantized weights.

    python -m launch.compress --workdir=DIR --method=nf4 --out=NEW
    python -m launch.compress --workdir=DIR --method=int8 --out=NEW --dtype=bfloat16

Generation, evaluation and classification read NEW like any other workdir. Adapters train over it if config.init_from
names it. The float model is read one array at a time, so the host needs memory for the quantized model and one array.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.compress")

from launch.program import runtime

runtime.configure()

from pathlib import Path

from absl import flags

from launch.conversion import compressing
from launch.program.checking import checking
from launch.run import early_stopping, places
from launch.run.workdirs import Workdir
from model.compress.quantize import FORMS, Settings
from model.config import CHOICES

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run or of an imported model. Required.", required=True)
_OUT = flags.DEFINE_string("out", None, "New workdir. Required.", required=True)
_METHOD = flags.DEFINE_enum(
    "method", None, list(FORMS), "Quantization of the weights of linear layers. Required.", required=True
)
_DOUBLE = flags.DEFINE_bool("double_quantization", None, "Quantize the scales of nf4 too. Default: yes.")
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    CHOICES["dtype"],
    "Dtype of the parameters that are not quantized (embedding tables, norms) and of the computation. Weights are "
    "rounded to it before they are quantized. Default: those of the run; bfloat16 gives the base of configs/qlora.py.",
)


def main() -> None:
    form = {"method": _METHOD.value, "double_quantization": _DOUBLE.value}
    with checking("flags"):
        settings = Settings.of({name: value for name, value in form.items() if value is not None})
    run = Workdir(Path(_WORKDIR.value).absolute())
    compressing.compress(run, places.named(_OUT.value, "--out"), settings, _STEP.value, _DTYPE.value)


if __name__ == "__main__":
    runtime.run(main)
