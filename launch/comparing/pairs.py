"""Samples the answers of several models to the same prompts, and pairs them.

All models are asked with the same settings and the same random keys. FOLDER/answers/NAME.jsonl holds the answers of a
model, as launch.generate writes them, so a command that was killed continues, and a further model may join later.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.batch import DataError
from data.examples import kinds
from data.examples.chat_examples import Question
from launch.answers import growing
from launch.answers.answerer import Answerer, Wanted
from launch.answers.prompts import asked
from launch.program.checking import ConfigError, checking
from launch.run.workdirs import Workdir

TIE = ""  # the winner of a comparison that has none


class Answered(NamedTuple):
    """A prompt with the answer of each model."""

    number: int  # of the prompt in its file
    record: dict[str, Any]
    question: str  # the prompt as a text
    answers: dict[str, str]  # by the names of the models


class Pair(NamedTuple):
    """Two models whose different answers to a prompt are compared; `first` comes first in the alphabet."""

    prompt: int
    first: str
    second: str
    shown: str  # a hash of what a rater reads, so that a vote never counts for other answers

    @property
    def names(self) -> tuple[str, str]:
        return self.first, self.second

    def digest(self, text: str = "") -> str:
        """Returns random but reproducible hexadecimal digits."""
        return _hash(text, str(self.prompt), *self[1:])


class Verdict(NamedTuple):
    """What a rater says about a pair."""

    pair: Pair
    winner: str  # the name of the better model, or TIE
    rater: str


def named(paths: Sequence[str]) -> dict[str, Workdir]:
    """Returns workdirs by names: the shortest ends of their paths that differ.

    Raises:
      ConfigError: there are fewer than two, or one is named twice.
    """
    if len(paths) < 2:
        raise ConfigError(f"name at least two workdirs to compare, as in runs/sft runs/dpo; there is {len(paths)}")
    parts = [Path(path).absolute().parts for path in paths]
    if again := next((path for i, path in enumerate(paths) if parts[i] in parts[:i]), None):
        raise ConfigError(f"{again} is named twice; a model is compared with other ones")
    found = {}
    for path, own in zip(paths, parts, strict=True):
        length = next(n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in parts) == 1)
        found["/".join(own[-length:])] = Workdir(Path(path).absolute())
    return found


def answered(models: Mapping[str, Workdir], prompts: Path, folder: Path, wanted: Wanted) -> list[Answered]:
    """Returns the prompts that all models can answer, with their answers.

    Args:
      models: the workdirs.
      prompts: a file of records.
      folder: of the comparison.
      wanted: how they answer; each once.

    Raises:
      ConfigError, DataError: before a model is loaded: a workdir or the prompts can't be read, or the folder has
        answers that were made otherwise.
    """
    answerers = {name: _answerer(run, prompts, wanted) for name, run in models.items()}
    with checking(f"--output {folder}"):
        _make(folder / "answers")
    files = {}
    for name, answerer in answerers.items():
        path = folder / "answers" / f"{name.replace('/', '+')}.jsonl"
        files[name] = growing.Growing(path, answerer.settings, path)
    found: dict[str, dict[int, Any]] = {}
    for name, answerer in answerers.items():
        answerer.write(files[name])
        lines = zip(answerer.given.prompts, files[name].lines(), strict=True)
        found[name] = {prompt.number: line["answers"][0]["answer"] for prompt, line in lines}
        files[name].close()
    one = answerers[next(iter(answerers))].given.prompts
    given = [prompt for prompt in one if all(prompt.number in own for own in found.values())]
    if not given:
        raise DataError(f"{prompts}: no prompt is short enough for all models.")
    return [
        Answered(prompt.number, prompt.record, question_of(prompt.record), {n: found[n][prompt.number] for n in found})
        for prompt in given
    ]


def _answerer(run: Workdir, prompts: Path, wanted: Wanted) -> Answerer:
    if run.architecture.head != "language_model":
        raise ConfigError(f"{run.path} holds a model with the head {run.architecture.head}, which gives no text")
    return Answerer(run, prompts, wanted)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{error.strerror}; name a folder that can be written") from error


def question_of(record: Mapping[str, Any]) -> str:
    """Returns the prompt of a record as a text for a person or a judge to read."""
    asking = kinds.KINDS["chat"].asking
    assert asking is not None
    try:
        conversation = asked(record)
    except ValueError:  # a text that models without conversations continue may be none
        return str(record["prompt"])
    return asking.shown(Question(conversation["messages"], conversation.get("tools")))


def _hash(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def pairs(given: Sequence[Answered]) -> tuple[list[Pair], list[Pair]]:
    """Returns all pairs of models on all prompts: those whose answers differ, and those whose answers are equal.

    Both are in an order that is random but always the same. Raters see pairs in this order, so those who stop early
    have judged the same ones, and as many of each two models.
    """
    found: dict[bool, list[Pair]] = {True: [], False: []}
    for one in given:
        for first, second in itertools.combinations(sorted(one.answers), 2):
            texts = one.answers[first].strip(), one.answers[second].strip()
            found[texts[0] == texts[1]].append(Pair(one.number, first, second, _hash(one.question, *texts)))
    return sorted(found[False], key=Pair.digest), sorted(found[True], key=Pair.digest)


def ties(asked: Sequence[Pair], equal: Sequence[Pair], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Returns the ties of pairs with equal answers, which no rater is asked about.

    For each rater, they are those that come before the rater's last vote in the common order, and all if there is a
    vote on everything. So equal answers count as often as they would if they were shown.
    """
    found = []
    for rater in sorted({verdict.rater for verdict in verdicts}):
        own = {verdict.pair for verdict in verdicts if verdict.rater == rater}
        last = max(map(Pair.digest, own))
        found += [Verdict(pair, TIE, rater) for pair in equal if own >= {*asked} or pair.digest() < last]
    return found
