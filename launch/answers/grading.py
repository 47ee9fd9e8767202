"""Answers to held-out examples, graded: conversations up to their last answer, or the source of each pair of texts.

Of several sources there are the figures of all that train together, and of each. What is longer than in training is cut
as it was there (data/examples/example.py).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data import files
from data.batch import DataError
from data.examples import kinds
from data.prepared import Prepared, PreparedSource
from data.tokens.tokenizer import Tokenizer
from launch.answers import held_out
from launch.answers.completer import Completer
from launch.program.checking import ConfigError, checking
from model.config import ModelConfig
from train.evals import text
from train.evals.bulk import answers

KINDS = tuple(name for name, kind in kinds.KINDS.items() if kind.asking is not None)  # those that can be graded
SHOWN = 5  # answers that stand in the report


class Settings(NamedTuple):
    """The block `grade` of a config."""

    metrics: tuple[str, ...]
    rows: int  # examples of each source; 0: all
    max_new_tokens: int
    tokenizer: str  # of BLEU


class Answer(NamedTuple):
    source: str
    prompt: str
    reference: str
    answer: str
    cut: bool  # the model read less than the whole prompt


def settings(config: ConfigDict, **given) -> Settings:
    """Those of config.grade, with what is `given` in their place, checked; metrics are a text with commas.

    Raises:
      ConfigError: an unknown metric or tokenizer, numbers that can't be, or no source that could be graded.
    """
    fields = config.grade.to_dict() | given
    names = tuple(name.strip() for name in str(fields["metrics"]).split(",") if name.strip())
    with checking("grade"):
        found = Settings(**(fields | {"metrics": names}))
        text.check(names, found.tokenizer)
    for name, least in (("rows", 0), ("max_new_tokens", 1)):
        if getattr(found, name) < least:
            raise ConfigError(f"grade.{name} is {getattr(found, name)}; it must be at least {least}")
    read = {kinds.kind_of(spec) for spec, _ in kinds.sources(config.data)}
    if names and not read.intersection(KINDS):
        raise ConfigError(
            f"grade: answers to conversations, pairs of texts and preferences are graded, and this run reads "
            f"{', '.join(read)} alone"
        )
    return found


class Grader:
    """What a run held out as questions, and its model's answers to them.

    Raises:
      ConfigError: `max_new_tokens` leaves no room for a prompt.
      DataError: no example is held out.
    """

    def __init__(
        self, config: ConfigDict, prepared: Prepared, model: ModelConfig, tokenizer: Tokenizer, wanted: Settings
    ):
        self.settings, self._batch, self._seq_len = wanted, config.batch_size, prepared.seq_len
        self._completer, self._kinds = Completer(config, tokenizer, model), kinds.checked(config.data)
        self._several = len(prepared.sources) > 1
        sources = [source for source in prepared.sources if source.validation_rows]
        named = zip(held_out.names(sources), sources, strict=True)
        self._sources = {name: source for name, source in named if source.kind in KINDS}
        if not self._sources:
            raise DataError(
                f"No conversations or pairs of texts are held out in {prepared.directory}: set data.validation higher."
            )
        if self._completer.room(self._seq_len, wanted.max_new_tokens) < 1:
            raise ConfigError(
                f"grade.max_new_tokens {wanted.max_new_tokens} leaves no room for a prompt in "
                f"config.model.max_length {model.max_length}; make it less"
            )
        self._records = {
            name: list(islice(filter(_asks(source), prepared.validation_records(source)), wanted.rows or None))
            for name, source in self._sources.items()
        }
        self._sources = {name: source for name, source in self._sources.items() if self._records[name]}
        if not self._sources:
            raise DataError(
                f"No held-out conversation in {prepared.directory} has an answer to compare with, because all of them "
                "say that theirs are not trained on: hold out others, or leave config.grade.metrics and --grade out."
            )

    def answers(self, model) -> Iterator[Answer]:
        """The model's answers, on the mesh that is set."""
        for name, source in self._sources.items():
            records, new = self._records[name], self.settings.max_new_tokens
            given = self._completer.of_records(source.kind, records, self._seq_len, new)
            tokenizer, asking = self._completer.tokenizer, kinds.KINDS[source.kind].asking
            found = answers(
                model,
                [one.prompt for one in given],
                None if given[0].source is None else [one.source for one in given],
                batch_size=self._batch,
                max_new_tokens=new,
                ends=given[0].ends,
                vocab_size=tokenizer.vocab_size,
            )
            for record, one, ids in zip(records, given, found, strict=True):
                reference = asking.reference(self._kinds[source.kind], tokenizer, record)
                yield Answer(name, asking.shown(asking.question(record)), reference, one.text(ids), one.cut)

    def figures(self, found: Sequence[Answer]) -> dict[str, float]:
        """Of all answers to sources that train (if none does, to all); of several sources also of each."""
        train = {name for name, source in self._sources.items() if source.weight} or {*self._sources}
        figures = self._grade(answer for answer in found if answer.source in train)
        for name in self._sources if self._several else ():
            own = self._grade(answer for answer in found if answer.source == name)
            figures |= {f"{name}/{metric}": value for metric, value in own.items()}
        return figures

    def _grade(self, found: Iterable[Answer]) -> dict[str, float]:
        said, references = zip(*((answer.answer, answer.reference) for answer in found), strict=True)
        return text.grade(said, references, self.settings.metrics, self.settings.tokenizer)

    def facts(self, found: Sequence[Answer]) -> dict[str, Any]:
        """What summary.json says of a grading."""
        signatures = text.signatures(self.settings.metrics, self.settings.tokenizer)
        shown = [answer._asdict() for answer in found[:SHOWN]]
        return {
            "figures": self.figures(found),
            "signatures": signatures,
            "examples": len(found),
            "cut": sum(answer.cut for answer in found),
            "max_new_tokens": self.settings.max_new_tokens,
            "shown": shown,
        }


def evaluation_of(
    config: ConfigDict, prepared: Prepared, model: ModelConfig, tokenizer: Tokenizer
) -> Callable[[Any], dict[str, float]]:
    """model -> `validation/METRIC` of what config.grade names; nothing where it names nothing."""
    wanted = settings(config)
    if not wanted.metrics:
        return lambda model: {}
    grader = Grader(config, prepared, model, tokenizer, wanted)

    def run(model) -> dict[str, float]:
        return {f"validation/{name}": value for name, value in grader.figures(list(grader.answers(model))).items()}

    return run


def _asks(source: PreparedSource) -> Callable[[dict], bool]:
    """Whether a record asks. A conversation that says that none of its answers is to be trained on does not."""
    question = kinds.KINDS[source.kind].asking.question
    return lambda record: question(record) is not None


def write(path: Path, found: Iterable[Answer]) -> None:
    """A line of JSON for each answer."""
    files.replace(path, "".join(json.dumps(answer._asdict(), ensure_ascii=False) + "\n" for answer in found))


def table(facts: Mapping[str, Any]) -> str:
    """The figures of `Grader.facts`, a line each, with their signatures."""
    cut = f" ({facts['cut']} were too long and were cut)" if facts["cut"] else ""
    lines = [f"answers to {facts['examples']} held-out examples{cut}, from 0 to 100:"]
    for name, value in facts["figures"].items():
        metric = name.rpartition("/")[2]
        signature = next((s for key, s in facts["signatures"].items() if metric.startswith(key)), "")
        lines.append(f"  {name:18} {value:6.2f}  {signature * ('/' not in name)}".rstrip())
    return "\n".join(lines)
