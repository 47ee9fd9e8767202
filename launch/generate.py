"""Continue prompts with a trained model.

    python -m launch.generate --workdir=DIR --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --top_p=0.95

Several --prompt are one batch; where there is an encoder, it reads them. Writes each prompt with its continuation (of
an encoder-decoder the continuation alone) to stdout, so that it can be piped. A model tuned on conversations or on
pairs of texts gets the prompt as these had their questions, and its answer alone is written.

    python -m launch.generate --workdir=BASE --adapter=DIR1 --adapter=DIR2 --prompt="def main("

continues every prompt with every adapter, all in one batch.
"""

from launch.program import runtime

runtime.configure()

from pathlib import Path

import jax
from absl import flags

from launch.answers import prompts
from launch.program.checking import checking
from launch.run import adapters, early_stopping, restore
from launch.run.workdirs import Workdir
from model import axes
from model.config import CHOICES
from model.decode import sampling
from model.decode.generate import check, generate

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run of launch.train. Required.", required=True)
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum(
    "dtype", None, CHOICES["dtype"], "Dtype of parameters and computation; by default that of the run."
)
_ADAPTER = flags.DEFINE_multi_string(
    "adapter",
    [],
    "Workdir of a low-rank adapter over the model of --workdir; where several are given, each one answers.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [""], "Text to continue; may be given several times.")
_SYSTEM = flags.DEFINE_string("system", "", "System text before the question; for models tuned on conversations.")
_RAW = flags.DEFINE_bool("raw", False, "Continue the prompt as it is, whatever the model was tuned on.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Continuations of each prompt.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 100, "The most tokens of a continuation; the end of a document ends it too."
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.8, "At 0 always the most likely token, at 1 the model's distribution."
)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many of the most likely tokens; 0: from all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens that together have this probability; 1: all.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")


def main() -> None:
    with checking("flags"):
        settings = sampling.settings(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    runs = [Workdir(Path(run).absolute()) for run in _ADAPTER.value or [_WORKDIR.value]]
    if _ADAPTER.value:
        mesh, model, tokenizer = adapters.several(
            Workdir(Path(_WORKDIR.value).absolute()), runs, step=_STEP.value, dtype=_DTYPE.value
        )
    else:
        mesh, model, tokenizer = restore.for_inference(runs[0], step=_STEP.value, dtype=_DTYPE.value)
    texts = [text for text in _PROMPT.value for _ in range(_NUM_SAMPLES.value)]
    reads = model.config.architecture == "encoder_decoder"
    given = [prompts.inputs(run.config, tokenizer, texts, reads, _SYSTEM.value, _RAW.value) for run in runs]
    # Of each text, the rows of all runs.
    rows = [(run, number) for number in range(len(texts)) for run in range(len(runs))]
    known = model.inputs.tokens.rows
    inputs = [given[run].prompts[number] for run, number in rows]
    read = [own.sources or [] for own in given]
    sources = [read[run][number] for run, number in rows] if reads else None
    with checking("flags"):
        check(inputs, _MAX_NEW_TOKENS.value, tokenizer.vocab_size, model.config, sources, known)
    with axes.use_mesh(mesh):
        result = generate(
            model,
            key=jax.random.key(_SEED.value),
            max_new_tokens=_MAX_NEW_TOKENS.value,
            settings=settings,
            eos_id=sorted({end for own in given for end in own.ends}),
            vocab_size=tokenizer.vocab_size,
            prompts=inputs,
            sources=sources,
            adapters=[run for run, _ in rows] if _ADAPTER.value else None,
        )
    for place, (run, number) in enumerate(rows):
        if len(rows) > 1:
            print(f"--- {place + 1} of {len(rows)}{': ' + _ADAPTER.value[run] if _ADAPTER.value else ''} ---")
        print(given[run].whole(tokenizer, number, result.tokens[place, : result.lengths[place]].tolist()))


if __name__ == "__main__":
    runtime.run(main)
