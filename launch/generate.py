"""Continue prompts with a trained model.

    python -m launch.generate --workdir=DIR --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --top_p=0.95

Several --prompt form one batch. Each prompt is written to stdout with its continuation, so that it can be piped. If
there is an encoder, it reads the prompt, and only the continuation is written. A model that was tuned on conversations
or on pairs of texts gets the prompt as a question in the same form, and only its answer is written.

    python -m launch.generate --workdir=BASE --adapter=DIR1 --adapter=DIR2 --prompt="def main("

continues every prompt with every adapter, all in one batch.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.generate")

from launch.program import runtime

runtime.configure()

import functools
from pathlib import Path

import jax
from absl import flags

from launch.answers.completer import Completer
from launch.answers.completion import Request, completed
from launch.program.checking import checking
from launch.run import adapter_bank, early_stopping, restore
from launch.run.workdirs import Workdir
from model import axes
from model.config import CHOICES
from model.decode import sampling

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run of launch.train. Required.", required=True)
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum("dtype", None, CHOICES["dtype"], "Dtype of parameters and computation. Default: the run's.")
_ADAPTER = flags.DEFINE_multi_string(
    "adapter",
    [],
    "Workdir of a low-rank adapter over the model of --workdir; may be given several times, and each one answers.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [""], "Text to continue; may be given several times.")
_SYSTEM = flags.DEFINE_string("system", "", "System text before the question; for models tuned on conversations.")
_RAW = flags.DEFINE_bool("raw", False, "Continue the prompt as it is, even if the model was tuned on questions.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Number of continuations of each prompt.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 100, "Maximum length of a continuation, in tokens; it also ends at the end of a document."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Sampling temperature; 0: greedy, 1: the model's distribution.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample from this many of the most likely tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the fewest tokens that together have this probability; 1: all.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")


def main() -> None:
    with checking("flags"):
        settings = sampling.settings(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    run, adapted = Workdir(Path(_WORKDIR.value).absolute()), [Workdir(Path(path).absolute()) for path in _ADAPTER.value]
    if adapted:
        mesh, model, tokenizer = adapter_bank.several(run, adapted, step=_STEP.value, dtype=_DTYPE.value)
    else:
        mesh, model, tokenizer = restore.for_inference(run, step=_STEP.value, dtype=_DTYPE.value)
    known = model.inputs.tokens.rows
    completer = Completer(run.config, tokenizer, model.config, known, [one.config for one in adapted])
    asked = functools.partial(Request, system=_SYSTEM.value, raw=_RAW.value, settings=settings)
    requests = [
        asked(text, max_new_tokens=_MAX_NEW_TOKENS.value, adapter=adapter)
        for text in _PROMPT.value
        for _ in range(_NUM_SAMPLES.value)
        for adapter in (range(len(adapted)) if adapted else [None])
    ]
    with checking("flags"):
        batch = completer.completions(requests)
    with axes.use_mesh(mesh):
        found = completed(model, batch, jax.random.key(_SEED.value))
    for place, (completion, ids) in enumerate(zip(batch, found, strict=True)):
        if len(batch) > 1:
            who = "" if completion.request.adapter is None else f": {_ADAPTER.value[completion.request.adapter]}"
            print(f"--- {place + 1} of {len(batch)}{who} ---")
        print(completion.whole(ids))


if __name__ == "__main__":
    runtime.run(main)
