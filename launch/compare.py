"""Compare two or more models by their answers to the same prompts, judged by people or by a model.

    python -m launch.compare runs/sft runs/dpo --prompts=prompts.jsonl
    python -m launch.compare runs/sft runs/dpo --prompts=prompts.jsonl --judge=runs/judge
    python -m launch.compare runs/sft runs/dpo --prompts=prompts.jsonl --export=preferences.jsonl

Every model answers every prompt, with the same settings. Then a page on this machine shows two answers side by side,
without the names of the models, and people vote; Ctrl-C ends it and prints win rates, ratings with intervals, ratings
at equal lengths and the agreement of the raters. With --judge, a model judges instead, each pair in both orders.
--export writes the verdicts as preferences, which configs/dpo.py reads. The folder of --output holds answers, votes and
results; the same command continues.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.compare")

from launch.program import runtime

runtime.configure()

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from absl import flags

from data import files
from launch.answers import growing
from launch.answers.answerer import Wanted
from launch.comparing import exported, judged, outcome, server
from launch.comparing.pairs import Answered, Pair, Verdict, answered, named, pairs, ties
from launch.comparing.votes import Votes
from launch.judging import chosen, questions
from launch.judging.replies import Judge
from launch.program.checking import ConfigError
from launch.run import early_stopping
from model.config import CHOICES

_PROMPTS = flags.DEFINE_string(
    "prompts", None, "File of prompts: .jsonl, .json, .csv or .tsv. Required.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for answers, votes and results. Default: runs/compare-NAMES.")
_JUDGE = flags.DEFINE_string("judge", None, "Workdir of a judge, or the URL of a server. Default: people vote.")
_JUDGE_MODEL = flags.DEFINE_string("judge_model", None, "Name of the model on the server of --judge.")
_PRINCIPLES = flags.DEFINE_string(
    "principles", str(questions.PRINCIPLES), "Text file that tells the judge what makes an answer good."
)
_EXPORT = flags.DEFINE_string("export", None, "Write the verdicts to this .jsonl file as preferences; serves no page.")
_PORT = flags.DEFINE_integer("port", 8765, "Port of the page on 127.0.0.1; 0: any free one.")
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum("dtype", None, CHOICES["dtype"], "Dtype of parameters and computation. Default: the run's.")
_SYSTEM = flags.DEFINE_string("system", "", "System text before the question; for models tuned on conversations.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Maximum length of an answer, in tokens.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Sampling temperature; 0: greedy, 1: the model's distribution.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample from this many of the most likely tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the fewest tokens that together have this probability; 1: all.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same answers.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Answers that are generated together.", lower_bound=1)
_OF_WANTED = ("step", "dtype", "system", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "batch_size")
_SERVER = dict(parallel=8, max_tokens=1024, max_failures=20)  # room for a judge that thinks before it answers


def main(paths: list[str]) -> None:
    runs = named(paths)
    folder = Path(_OUTPUT.value or f"runs/compare-{'-'.join(name.replace('/', '+') for name in runs)}")
    export = growing.output_of(_EXPORT.value, "--export") if _EXPORT.value else None
    judge = _judge(_JUDGE.value) if _JUDGE.value else None
    if judge is None and (extra := next((n for n in ("judge_model", "principles") if flags.FLAGS[n].present), None)):
        raise ConfigError(f"--{extra} is for --judge")
    if flags.FLAGS["port"].present and (judge is not None or export is not None):
        raise ConfigError("--port is for the page to vote on, which --judge and --export don't serve")
    principles = questions.principles(Path(_PRINCIPLES.value))
    served = server.bound(_PORT.value) if judge is None and export is None else None
    wanted: dict[str, Any] = {name: flags.FLAGS[name].value for name in _OF_WANTED}
    given = answered(runs, Path(_PROMPTS.value), folder, Wanted(**wanted, raw=False, num_samples=1))
    asked, equal = pairs(given)
    if not asked:
        raise ConfigError(f"all answers in {folder / 'answers'} are equal, so there is nothing to compare")
    more: dict[str, Any] = {}
    if judge is not None:
        verdicts, counted = judged.judged(*judge, principles, given, asked, folder)
        print(judged.text(counted))
        more = {"judge": judge[1], "judging": counted}
    else:
        votes = Votes(folder / "votes.sqlite")
        if served is not None:
            results = lambda: _results(folder, given, asked, equal, _counted(votes, asked))
            served.RequestHandlerClass = server.handler(server.Voting(given, asked, votes, results))
            _serve(served, len(asked), len({verdict.pair for verdict in _counted(votes, asked)}))
        verdicts = _counted(votes, asked)
    found = _results(folder, given, asked, equal, verdicts, more)
    print(f"{outcome.text(found)}\n\nresults -> {folder / 'results.json'}")
    if export is not None:
        print(exported.text(export, exported.export(export, given, verdicts)))


def _judge(place: str) -> tuple[Judge, dict[str, Any]]:
    if place.startswith(chosen.SERVERS):
        return chosen.server_judge(place, _JUDGE_MODEL.value, **_SERVER)
    if _JUDGE_MODEL.value:
        raise ConfigError(f"--judge_model is for a server, but --judge {place} is a workdir (a URL begins with http)")
    return chosen.workdir_judge(place)


def _counted(votes: Votes, asked: Sequence[Pair]) -> list[Verdict]:
    """Returns the votes on these pairs; the file may have others, of models that are not compared now."""
    current = {*asked}
    return [verdict for verdict in votes.verdicts() if verdict.pair in current]


def _results(
    folder: Path,
    given: Sequence[Answered],
    asked: Sequence[Pair],
    equal: Sequence[Pair],
    verdicts: Sequence[Verdict],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes FOLDER/results.json and returns its content."""
    found = outcome.outcome(given, verdicts, ties(asked, equal, verdicts)) | dict(more or {})
    files.replace(folder / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def _serve(served: ThreadingHTTPServer, asked: int, voted: int) -> None:
    """Serves the page until Ctrl-C."""
    print(f"{asked:,} pairs to judge, {voted:,} of them have votes; Ctrl-C ends and prints the results")
    print(f"open http://127.0.0.1:{served.server_address[1]}", flush=True)
    with served, contextlib.suppress(KeyboardInterrupt):
        served.serve_forever()
    command = shlex.join(["python", "-m", "launch.compare", *sys.argv[1:]])
    print(f"\nall votes are kept; this continues: {command}\n")


if __name__ == "__main__":
    runtime.run(main, arguments=True)
