"""Continue prompts with a trained model.

    python -m launch.generate --workdir=DIR --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --top_p=0.95

Several --prompt form one batch. Each prompt is written to stdout with its continuation, so that it can be piped. If
there is an encoder, it reads the prompt, and only the continuation is written. A model that was tuned on conversations
or on pairs of texts gets the prompt as a question in the same form, and only its answer is written.

    python -m launch.generate --workdir=BASE --adapter=DIR1 --adapter=DIR2 --prompt="def main("

continues every prompt with every adapter, all in one batch.

    python -m launch.generate --workdir=DIR --prompts=prompts.jsonl --num_samples=4 --output=samples.jsonl

answers a file of records with a field prompt, or messages, and keeps their other fields. A line of the output is the
record with "answers": [{"answer": a text, "finished": whether the model ended it, "tokens": how many it has}]. The same
command continues after a kill, with the same result.

    python -m launch.generate --workdir=DIR --prompts=prompts.jsonl --best_of=8 --reward_model=DIR2 --output=best.jsonl

keeps the best of 8 answers to each prompt, as conversations to train on. Reward functions may score them instead, and
only right answers be kept: --reward=numeric:answer --min_score=1.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.generate")

from launch.program import runtime

runtime.configure()

import contextlib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from launch.answers import answering, best, growing, origins, prompts
from launch.answers.answerer import Answerer, Wanted
from launch.answers.completer import Completer
from launch.answers.completion import Request, completed
from launch.program.checking import ConfigError, checking
from launch.run import adapter_bank, early_stopping, restore
from launch.run.workdirs import Workdir
from model import axes
from model.config import CHOICES
from model.decode import sampling
from train.align.rewards import table
from train.align.rewards.scoring import Scoring

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run of launch.train. Required.", required=True)
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum("dtype", None, CHOICES["dtype"], "Dtype of parameters and computation. Default: the run's.")
_ADAPTER = flags.DEFINE_multi_string(
    "adapter",
    [],
    "Workdir of a low-rank adapter over the model of --workdir; may be given several times, and each one answers.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [""], "Text to continue; may be given several times.")
_PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts: .jsonl, .json, .csv or .tsv; needs --output.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the answers to --prompts; it ends in .jsonl.")
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
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Answers to --prompts that are generated together.", lower_bound=1)
_BEST_OF = flags.DEFINE_integer(
    "best_of", None, "Keep the best of this many answers to each prompt, by --reward_model or --reward.", lower_bound=1
)
_REWARD_MODEL = flags.DEFINE_string("reward_model", None, "Workdir of a reward model; for --best_of.")
_REWARD = flags.DEFINE_multi_string(
    "reward",
    [],
    "Reward function for --best_of (train/README.md), such as numeric:answer; several add up. Its columns are those of "
    "--prompts.",
)
_MIN_SCORE = flags.DEFINE_float("min_score", None, "Leave out prompts whose best answer has a lower score.")


def _check_flags() -> None:
    """Raises a ConfigError if flags are given that don't go together."""
    if bool(_PROMPTS.value) != bool(_OUTPUT.value):
        raise ConfigError("--prompts (a file) and --output (for the answers) go together; --prompt prints its answer")
    if _PROMPTS.value and (flags.FLAGS["prompt"].present or _ADAPTER.value):
        raise ConfigError("--prompts (a file) can't be given along with --prompt or --adapter; leave one of them out")
    if not _PROMPTS.value and flags.FLAGS["batch_size"].present:
        raise ConfigError("--batch_size is for --prompts; several --prompt form one batch")
    if (_BEST_OF.value is None) != (_REWARD_MODEL.value is None and not _REWARD.value):
        raise ConfigError("--best_of and --reward_model or --reward (which score the answers) go together")
    if _REWARD_MODEL.value and _REWARD.value:
        raise ConfigError("--reward_model and --reward both score the answers; leave one of them out")
    if not _PROMPTS.value and (_REWARD.value or _MIN_SCORE.value is not None):
        raise ConfigError("--reward and --min_score are for --prompts (a file)")
    if _MIN_SCORE.value is not None and not _BEST_OF.value:
        raise ConfigError("--min_score is for --best_of")
    if _BEST_OF.value and flags.FLAGS["num_samples"].present:
        raise ConfigError("--best_of says how many answers are sampled; leave out --num_samples")
    if _BEST_OF.value and _ADAPTER.value:
        raise ConfigError("--best_of can't be given along with --adapter; sample from one model at a time")


def main() -> None:
    _check_flags()
    with checking("flags"):
        settings = sampling.settings(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    run = Workdir(Path(_WORKDIR.value).absolute())
    asked = functools.partial(
        Request, system=_SYSTEM.value, raw=_RAW.value, settings=settings, max_new_tokens=_MAX_NEW_TOKENS.value
    )
    if _PROMPTS.value and _OUTPUT.value:
        with contextlib.ExitStack() as stack:
            _answer_file(run, Path(_PROMPTS.value), growing.output_of(_OUTPUT.value), stack)
    else:
        _show(run, asked)


def _show(run: Workdir, asked: Callable[..., Request]) -> None:
    """Prints the answers to --prompt."""
    adapted = [Workdir(Path(path).absolute()) for path in _ADAPTER.value]
    conversations: list[dict] = []
    scores = None
    if _REWARD_MODEL.value:
        with checking("--prompt"):
            conversations = [prompts.asked({"prompt": text, "system": _SYSTEM.value}) for text in _PROMPT.value]
        scores = best.of_reward_model(Workdir(Path(_REWARD_MODEL.value).absolute()))
    if adapted:
        mesh, model, tokenizer = adapter_bank.several(run, adapted, step=_STEP.value, dtype=_DTYPE.value)
    else:
        mesh, model, tokenizer = restore.for_inference(run, step=_STEP.value, dtype=_DTYPE.value)
    known = model.inputs.tokens.rows
    completer = Completer(run.config, tokenizer, model.config, known, [one.config for one in adapted])
    requests = [
        asked(text, adapter=adapter)
        for text in _PROMPT.value
        for _ in range(_BEST_OF.value or _NUM_SAMPLES.value)
        for adapter in (range(len(adapted)) if adapted else [None])
    ]
    with checking("flags"):
        batch = completer.completions(requests)
    with axes.use_mesh(mesh):
        found = completed(model, batch, jax.random.key(_SEED.value))
    answers = list(zip(batch, found, strict=True))
    if scores:
        size = len(answers) // len(conversations)
        groups = [answers[begin : begin + size] for begin in range(0, len(answers), size)]
        values = best.scored(conversations, [[one.text(ids) for one, ids in group] for group in groups], scores)
        answers = [group[best.highest(own) or 0] for group, own in zip(groups, values, strict=True)]
    for place, (completion, ids) in enumerate(answers):
        if len(answers) > 1:
            who = "" if completion.request.adapter is None else f": {_ADAPTER.value[completion.request.adapter]}"
            print(f"--- {place + 1} of {len(answers)}{who} ---")
        print(completion.whole(ids))


def _answer_file(run: Workdir, path: Path, output: Path, stack: contextlib.ExitStack) -> None:
    """Answers the prompts of a file. `stack` closes the processes of reward functions."""
    names = ("step", "dtype", "system", "raw", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "batch_size")
    wanted: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    answerer = Answerer(run, path, Wanted(**wanted, num_samples=_BEST_OF.value or _NUM_SAMPLES.value))
    given, settings = answerer.given, answerer.settings
    lines, scores = output, None
    if _BEST_OF.value:
        for prompt in given.prompts:
            best.check(prompt, path)
        lines = growing.beside(output, "samples.jsonl")
    if _REWARD_MODEL.value:
        reward = Workdir(Path(_REWARD_MODEL.value).absolute())
        scores = best.of_reward_model(reward)
        settings |= {"reward_model": str(reward.path), "checkpoint of reward_model": origins.checkpoint(reward)}
    elif _REWARD.value:
        with checking("--reward"):
            scoring = stack.enter_context(Scoring([(spec, 1.0) for spec in _REWARD.value], on_error="skip"))
            scoring.check(prompt.record for prompt in given.prompts)
        scores, files = best.of_functions(scoring), table.files(_REWARD.value)
        settings |= {"reward": _REWARD.value, "files of rewards": [origins.digest(file) for file in files]}
    file = growing.Growing(lines, settings, output)
    answerer.write(file, scores)
    if scores:
        answering.best_of(file, output, -math.inf if _MIN_SCORE.value is None else _MIN_SCORE.value, given.left_out)
    found = answering.summary(file, given.left_out)
    file.finish(found)
    print(answering.shown(found, output))
    if scores and found["prompts"] == found["prompts_left_out"].get(answering.NO_SCORE):
        raise ConfigError(f"{output} is empty: every prompt is {answering.NO_SCORE}; {lines} has the answers")


if __name__ == "__main__":
    runtime.run(main)
