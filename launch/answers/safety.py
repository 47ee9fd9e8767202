"""Asks a model prompts that it should refuse, and harmless ones that look like them, and counts its refusals.

Answers are greedy, and judged by the written rules of train/evals/refusals.py. config.safety names the prompts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data import files
from data.examples import kinds
from data.examples.judged import harm_prompts
from data.examples.judged.harm_prompts import HarmPrompt
from data.tokens.tokenizer import Tokenizer
from launch.answers.completer import Completer, asking_of
from launch.answers.completion import Request
from launch.program.checking import ConfigError, checking
from model.config import ModelConfig
from train.evals.bulk import answers
from train.evals.intervals import spelled
from train.evals.refusals import VERDICTS, Case, counts, figures, intervals, judge

SHOWN = 3  # answers of each kind and language that the report shows


class Answer(NamedTuple):
    """A judged answer of the model."""

    kind: str  # harmful or benign
    category: str
    language: str
    prompt: str
    answer: str
    verdict: str  # one of refusals.VERDICTS
    rule: str  # the rules behind it

    @property
    def wrong(self) -> bool:
        """Whether a harmful prompt was answered, or a harmless one refused."""
        return (self.kind == "harmful") != (self.verdict == "refusal")


def check(config: ConfigDict) -> None:
    """Checks, before data are prepared, that config.safety.prompts can be read and fit what the run is tuned on.

    Raises:
      ConfigError: the run is tuned on something else than questions.
      DataError: the prompts can't be read.
    """
    if not config.safety.prompts:
        return
    prompts, kind = harm_prompts.read(config.safety.prompts), kinds.asked(config.data)
    if kind == kinds.TEXT:
        raise ConfigError(
            "config.safety.prompts are questions, but this run trains on no conversations that answer any: add some to "
            "config.data, or leave config.safety.prompts empty"
        )
    with checking("config.safety.prompts"):
        asking_of(kind).of_messages(prompts[0].messages, ())


class Asker:
    """Asks a model the prompts, and judges its answers.

    Args:
      config: of the run; its data say in which form the model expects a question.
      model: its architecture.
      tokenizer: its tokenizer.
      prompts: what to ask.
      max_new_tokens: limit of an answer's length. The rules read the opening, so a short one is enough.

    Raises:
      ConfigError: a prompt can't be asked in this form, or is too long for the model.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: ModelConfig,
        tokenizer: Tokenizer,
        prompts: Sequence[HarmPrompt],
        max_new_tokens: int,
    ):
        self._prompts, self._batch, self._new = prompts, config.batch_size, max_new_tokens
        requests = [Request(prompt.messages, max_new_tokens=max_new_tokens) for prompt in prompts]
        with checking("config.safety"):
            self._asked = Completer(config, tokenizer, model).completions(requests)
        self._vocab_size = tokenizer.vocab_size

    def answers(self, model) -> list[Answer]:
        """Returns the judged answers to all prompts, generated on the current mesh."""
        sources = [one.source for one in self._asked if one.source is not None]
        found = answers(
            model,
            [one.prompt for one in self._asked],
            sources or None,
            batch_size=self._batch,
            max_new_tokens=self._new,
            ends=self._asked[0].ends,
            vocab_size=self._vocab_size,
        )
        texts = [one.text([int(i) for i in ids]) for one, ids in zip(self._asked, found, strict=True)]
        return [_judged(prompt, text) for prompt, text in zip(self._prompts, texts, strict=True)]


def _judged(prompt: HarmPrompt, answer: str) -> Answer:
    kind = "harmful" if prompt.harmful else "benign"
    asked = "\n".join(message["content"] for message in prompt.messages)
    return Answer(kind, prompt.category, prompt.language, asked, answer, *judge(answer))


def evaluation_of(config: ConfigDict, model: ModelConfig, tokenizer: Tokenizer) -> Callable[[Any], dict[str, float]]:
    """Returns a function from a model to the figures `validation/...` of config.safety; {} if it names no prompts."""
    if not config.safety.prompts:
        return lambda model: {}
    prompts = harm_prompts.read(config.safety.prompts)
    asker = Asker(config, model, tokenizer, prompts, config.safety.max_new_tokens)

    def run(model) -> dict[str, float]:
        return {f"validation/{name}": value for name, value in figures(_cases(asker.answers(model))).items()}

    return run


def _cases(found: Sequence[Answer]) -> list[Case]:
    return [Case(one.kind == "harmful", one.language, one.verdict) for one in found]


def facts(judged: Sequence[Answer]) -> dict[str, Any]:
    """Returns the entry `safety` of summary.json; of each kind and language, wrong answers are shown first."""
    cases, shown = _cases(judged), []
    for kind, language in dict.fromkeys((one.kind, one.language) for one in judged):
        own = [one for one in judged if (one.kind, one.language) == (kind, language)]
        shown += sorted(own, key=lambda one: not one.wrong)[:SHOWN]
    found = {"figures": figures(cases), "intervals": intervals(cases), "counts": counts(cases)}
    return found | {"shown": [one._asdict() for one in shown]}


def write(path: Path, found: Sequence[Answer]) -> None:
    """Writes a line of JSON for each answer."""
    files.replace(path, "".join(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in found))


def table(facts: Mapping[str, Any]) -> str:
    """Returns the counts, the figures and some answers of `facts` as a text."""
    columns = ("kind", "language", "prompts", *VERDICTS)
    rows = [columns, *([str(row[name]) for name in columns] for row in facts["counts"])]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["answers to held-out prompts, judged by written rules:"]
    for row in rows:
        cells = [
            cell.ljust(n) if place < 2 else cell.rjust(n) for place, (cell, n) in enumerate(zip(row, wide, strict=True))
        ]
        lines.append("  " + "  ".join(cells))
    lines.append(f"  {'':20} {'':5}  {'95 % interval':>14}  {'n':>5}")
    for name, value in facts["figures"].items():
        ends = facts["intervals"][name]
        lines.append(f"  {name.replace('_', ' '):20} {value:.3f}  {spelled(ends, '{:.3f}'):>14}  {ends['n']:5}")
    for one in facts["shown"]:
        answer = " ".join(one["answer"].split())
        lines += [f"--- {one['kind']}, {one['verdict']}: {one['prompt']}", f"    {answer[:200]}"]
    return "\n".join(lines)
