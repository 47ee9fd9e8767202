"""Let a model compare or score sampled answers, and write preferences to train on.

    python -m launch.judge --samples=samples.jsonl --judge=DIR --output=preferences.jsonl
    python -m launch.judge --samples=samples.jsonl --judge=http://HOST:PORT/v1 --judge_model=NAME \\
        --principles=principles.txt --output=preferences.jsonl

Reads what launch.generate wrote for --prompts, or other records with several answers. The judge is the model of a
workdir, or one behind a server that speaks OpenAI's chat protocol, with the key in OPENAI_API_KEY. It compares each two
answers in both orders, and if its verdicts contradict each other they tie; --mode=score has each answer rated from 1 to
10 instead. Every answer gets a score; configs/dpo.py and configs/reward.py train on the output. The same command
continues after a kill, and asks nothing twice.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.judge")

from launch.program import runtime

runtime.configure()

from collections import Counter
from pathlib import Path

from absl import flags

from data.batch import DataError
from launch.answers import growing, origins
from launch.judging import chosen, questions, run, shown
from launch.judging.replies import Judge
from launch.judging.samples import samples
from launch.program.checking import ConfigError
from launch.run import early_stopping
from model.config import CHOICES

_SAMPLES = flags.DEFINE_string("samples", None, "File of prompts with several answers each. Required.", required=True)
_JUDGE = flags.DEFINE_string("judge", None, "Workdir of the judge, or the URL of a server. Required.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File for the preferences; it ends in .jsonl. Required.", required=True)
_PRINCIPLES = flags.DEFINE_string(
    "principles", str(questions.PRINCIPLES), "Text file that says what makes an answer good."
)
_MODE = flags.DEFINE_enum("mode", "compare", ["compare", "score"], "Compare each two answers, or score each one.")
_SEED = flags.DEFINE_integer("seed", 0, "Chooses which pairs of more than 5 answers are compared.")
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum("dtype", None, CHOICES["dtype"], "Dtype of parameters and computation. Default: the run's.")
_JUDGE_MODEL = flags.DEFINE_string("judge_model", None, "Name of the model on the server.")
_PARALLEL = flags.DEFINE_integer("parallel", 8, "Questions that a server is asked at a time.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 256, "Maximum length of a server's reply; a judge that thinks first needs more.", lower_bound=1
)
_MAX_FAILURES = flags.DEFINE_integer(
    "max_failures", 20, "End after more questions than this to which the server gave no reply.", lower_bound=0
)
_OF_SERVERS = ("judge_model", "parallel", "max_new_tokens", "max_failures")


def _judge() -> tuple[Judge, dict]:
    """Returns the judge, and the settings that its verdicts depend on."""
    place = _JUDGE.value
    if not place.startswith(chosen.SERVERS):
        if extra := next((name for name in _OF_SERVERS if flags.FLAGS[name].present), None):
            raise ConfigError(f"--{extra} is for a server, but --judge {place} is a workdir (a URL begins with http)")
        return chosen.workdir_judge(place, _STEP.value, _DTYPE.value)
    if extra := next((name for name in ("step", "dtype") if flags.FLAGS[name].present), None):
        raise ConfigError(f"--{extra} is for a workdir, but --judge {place} is a server")
    return chosen.server_judge(
        place,
        _JUDGE_MODEL.value,
        parallel=_PARALLEL.value,
        max_tokens=_MAX_NEW_TOKENS.value,
        max_failures=_MAX_FAILURES.value,
    )


def main() -> None:
    path, output = Path(_SAMPLES.value), growing.output_of(_OUTPUT.value)
    principles, mode, seed = questions.principles(Path(_PRINCIPLES.value)), _MODE.value, _SEED.value
    judge, settings = _judge()
    counts: Counter[str] = Counter()
    given = list(samples(path, counts))
    if not counts["records"]:
        raise DataError(f"{path} holds no records, so there is nothing to judge.")
    settings |= {"samples": origins.digest(path), "principles": principles, "mode": mode, "seed": seed}
    journal = growing.Growing(growing.beside(output, "verdicts.jsonl"), settings, output)
    run.ask(judge, given, journal, principles=principles, mode=mode, seed=seed)
    summary = run.write(output, given, journal, counts, mode=mode, seed=seed)
    journal.finish(summary)
    print(shown.text(summary, output))
    if not counts["written"]:
        raise ConfigError(f"{output} is empty: no record has answers of different scores, so nothing can be learnt")


if __name__ == "__main__":
    runtime.run(main)
