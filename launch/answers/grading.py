"""Grades a model's answers to held-out examples: conversations without their last answer, or sources of text pairs.

With several sources there are figures for all sources that train together, and for each one. Prompts that are longer
than the rows of training are cut as in training (data/examples/example.py).
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
from launch.answers.completer import Completer, asking_of
from launch.program.checking import ConfigError, checking
from model.config import ModelConfig
from train.evals import intervals, text
from train.evals.bulk import answers

KINDS = tuple(filter(kinds.learnable, kinds.KINDS))  # kinds that can be graded
SHOWN = 5  # answers that the report shows


class Settings(NamedTuple):
    """The block `grade` of a config."""

    metrics: tuple[str, ...]
    rows: int  # examples of each source; 0: all
    max_new_tokens: int
    tokenizer: str  # how BLEU splits text


class Answer(NamedTuple):
    """An answer of the model, with its prompt and the answer that it is compared with."""

    source: str
    prompt: str
    reference: str
    answer: str
    cut: bool  # the model read less than the whole prompt


class Graded(NamedTuple):
    """What is behind a figure."""

    scored: text.Scored
    prompts: list[tuple[str, str]]  # of each answer; answers to the same one are a cluster

    def interval(self) -> dict[str, Any]:
        """Returns the number of answers and the 95 % interval (intervals.entry)."""
        found = intervals.interval(self.scored.rows_NK, self.scored.value, self.prompts)
        return intervals.entry(found, len(self.prompts))


def settings(config: ConfigDict, **given) -> Settings:
    """Returns the settings of config.grade, checked.

    Args:
      config: the whole config.
      **given: values of fields that replace those of config.grade; `metrics` is one string, separated by commas.

    Raises:
      ConfigError: a metric or tokenizer is unknown, a number is out of range, or no source can be graded.
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
            f"grade: only answers to sources of kind {', '.join(KINDS)} can be graded, but this run reads "
            f"{', '.join(read)}"
        )
    return found


class Grader:
    """Asks a model the held-out examples of its run, and grades its answers.

    Args:
      config: the config of the run.
      prepared: its data.
      model: its architecture.
      tokenizer: its tokenizer.
      wanted: what to grade, and how.

    Attributes:
      settings: `wanted`.
      records: the examples that it asks, by source.

    Raises:
      ConfigError: `max_new_tokens` leaves no room for a prompt.
      DataError: no example that asks is held out.
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
                f"No conversations or pairs of texts are held out in {prepared.directory}; raise "
                "config.data.validation."
            )
        if self._completer.room(self._seq_len, wanted.max_new_tokens) < 1:
            raise ConfigError(
                f"grade.max_new_tokens {wanted.max_new_tokens} leaves no room for a prompt in "
                f"config.model.max_length {model.max_length}; lower it"
            )
        self.records = {
            name: list(islice(filter(_asks(source), prepared.records(source, "validation")), wanted.rows or None))
            for name, source in self._sources.items()
        }
        self._sources = {name: source for name, source in self._sources.items() if self.records[name]}
        if not self._sources:
            raise DataError(
                f"No held-out conversation in {prepared.directory} has an answer to compare with, because all of their "
                "answers are marked as not trained on. Hold out other ones, or leave out "
                "config.grade.metrics and --grade."
            )

    def answers(self, model) -> Iterator[Answer]:
        """Yields the model's answers to all examples, generated on the current mesh."""
        for name, source in self._sources.items():
            records, new = self.records[name], self.settings.max_new_tokens
            given = self._completer.of_records(source.kind, records, self._seq_len, new)
            tokenizer, asking = self._completer.tokenizer, asking_of(source.kind)
            sources = [one.source for one in given if one.source is not None]
            found = answers(
                model,
                [one.prompt for one in given],
                sources or None,
                batch_size=self._batch,
                max_new_tokens=new,
                ends=given[0].ends,
                vocab_size=tokenizer.vocab_size,
            )
            for record, one, ids in zip(records, given, found, strict=True):
                reference = asking.reference(self._kinds[source.kind], tokenizer, record)
                yield Answer(
                    name, asking.shown(asking.question(record)), reference, one.text([int(i) for i in ids]), one.cut
                )

    def figures(self, found: Sequence[Answer]) -> dict[str, float]:
        """Returns the figures over all sources that train, or over all sources if none does.

        With several sources, the figures of each are added as SOURCE/METRIC.
        """
        return {name: one.scored.figure() for name, one in self.graded(found).items()}

    def graded(self, found: Sequence[Answer]) -> dict[str, Graded]:
        """Returns what is behind each figure."""
        train = {name for name, source in self._sources.items() if source.weight} or {*self._sources}
        graded = self._graded("", [answer for answer in found if answer.source in train])
        for name in self._sources if self._several else ():
            graded |= self._graded(f"{name}/", [answer for answer in found if answer.source == name])
        return graded

    def _graded(self, prefix: str, found: Sequence[Answer]) -> dict[str, Graded]:
        answered, references = [one.answer for one in found], [one.reference for one in found]
        scored = text.scored(answered, references, self.settings.metrics, self.settings.tokenizer)
        prompts = [(one.source, one.prompt) for one in found]
        return {f"{prefix}{metric}": Graded(one, prompts) for metric, one in scored.items()}

    def facts(self, found: Sequence[Answer]) -> dict[str, Any]:
        """Returns the entry `grade` of summary.json."""
        signatures = text.signatures(self.settings.metrics, self.settings.tokenizer)
        shown = [answer._asdict() for answer in found[:SHOWN]]
        graded = self.graded(found)
        return {
            "figures": {name: one.scored.figure() for name, one in graded.items()},
            "intervals": {name: one.interval() for name, one in graded.items()},
            "signatures": signatures,
            "examples": len(found),
            "prompts": len({(one.source, one.prompt) for one in found}),
            "cut": sum(answer.cut for answer in found),
            "max_new_tokens": self.settings.max_new_tokens,
            "shown": shown,
        }


def evaluation_of(
    config: ConfigDict, prepared: Prepared, model: ModelConfig, tokenizer: Tokenizer
) -> Callable[[Any], dict[str, float]]:
    """Returns a function from a model to `validation/METRIC` of each metric in config.grade; {} if there are none."""
    wanted = settings(config)
    if not wanted.metrics:
        return lambda model: {}
    grader = Grader(config, prepared, model, tokenizer, wanted)

    def run(model) -> dict[str, float]:
        return {f"validation/{name}": value for name, value in grader.figures(list(grader.answers(model))).items()}

    return run


def _asks(source: PreparedSource) -> Callable[[dict], bool]:
    """Returns a test of whether a record asks; a conversation in which no answer is trained on does not."""
    question = asking_of(source.kind).question
    return lambda record: question(record) is not None


def write(path: Path, found: Iterable[Answer]) -> None:
    """Writes a line of JSON for each answer."""
    files.replace(path, "".join(json.dumps(answer._asdict(), ensure_ascii=False) + "\n" for answer in found))


def table(facts: Mapping[str, Any]) -> str:
    """Returns a text with a line for each figure of `Grader.facts`: its 95 % interval, the number of answers, and its
    signature (the settings of the metric)."""
    cut = f" ({facts['cut']} were too long and were cut)" if facts["cut"] else ""
    lines = [f"answers to {facts['examples']} held-out examples{cut}, from 0 to 100:"]
    lines += [f"  {'':18} {'':6}  {'95 % interval':>16}  {'n':>6}"]
    for name, value in facts["figures"].items():
        metric = name.rpartition("/")[2]
        signature = next((s for key, s in facts["signatures"].items() if metric.startswith(key)), "")
        ends = facts["intervals"][name]
        line = f"  {name:18} {value:6.2f}  {intervals.spelled(ends, '{:.2f}'):>16}  {ends['n']:6}"
        lines.append(f"{line}  {signature * ('/' not in name)}".rstrip())
    if facts["prompts"] < facts["examples"]:
        lines.append(f"  intervals draw the {facts['prompts']} different prompts, each with all of its examples")
    return "\n".join(lines)
