"""Evaluates a model on held-out text and examples: the figures of each source, and a table of before and after."""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import pipeline
from data.batch import DataError
from data.examples import kinds
from data.prepared import Prepared, PreparedSource
from data.rows import corrupt
from launch.program.checking import ConfigError
from launch.run import build
from train.evals.perplexity import added, total
from train.evals.unigram import nats_of_targets, unigram
from train.losses import Loss
from train.objectives.objective import HeldOut, Objective
from train.report import evaluations, recorded

BASELINE_ROWS = 32  # rows per batch for the unigram baseline, independent of the run's batch size


def check(config: ConfigDict) -> None:
    """Checks, before data are prepared, that evaluations have something to read.

    Sources with a validation split of their own are known only later (check_held_out).

    Raises:
      ConfigError: nothing will be held out, but config.eval_every asks for evaluations.
    """
    specs = [spec for spec, _ in kinds.sources(config.data)]
    brings = config.data.labels.split or any(spec.startswith(("tfds:", "tfds[")) for spec in specs)
    if config.eval_every and not config.data.validation and not brings:
        raise ConfigError(
            f"config.data.validation is 0, so nothing is held out for the evaluations of config.eval_every "
            f"{config.eval_every}: raise config.data.validation, or set config.eval_every=0"
        )


def check_held_out(config: ConfigDict, prepared: Prepared) -> None:
    """Checks, once data are prepared, that evaluations have something to read.

    Raises:
      ConfigError: nothing is held out, but config.eval_every asks for evaluations.
    """
    held = lambda source: source.validation_rows if source.channels else source.validation_documents
    if config.eval_every and not any(map(held, prepared.sources)):
        raise ConfigError(
            f"nothing is held out in {prepared.directory} for the evaluations of config.eval_every "
            f"{config.eval_every}: raise config.data.validation (now {config.data.validation}), or set "
            "config.eval_every=0"
        )


class Evaluation:
    """Evaluates models on held-out rows: (model, rows of each source; None: all) -> {'validation/...': value}.

    `validation/loss` and the objective's other figures are over all sources that train, with equal weight for every
    held-out token. If only some rows are read, a source still counts by the number of rows that it holds out. With
    several sources, each has figures of its own (`validation/SOURCE/loss`), also sources of weight 0, which are only
    watched. All processes get the same figures.

    Args:
      config: the config of the run.
      prepared: its data.
      corruption: how the text is corrupted (build.corruption); None: not at all.
      objective: computes the figures from the sums of the loss.
      eval_step: the compiled step of the objective (train.step.make_eval_step).
      mesh: the devices of the model.
    """

    def __init__(
        self,
        config: ConfigDict,
        prepared: Prepared,
        corruption: corrupt.Corruption | None,
        objective: Objective,
        eval_step,
        mesh: Mesh,
    ):
        self._config, self._prepared, self._corruption = config, prepared, corruption
        self._objective, self._step = objective, eval_step
        self._put, self._mine = build.put(mesh), build.batch_rows(mesh, config.batch_size)
        self._sources = [source for source in prepared.sources if source.validation_rows]
        self._baseline = functools.cache(self._unigram)

    def __call__(self, model, rows: int | None, companions=None) -> dict[str, float]:
        if not self._sources:
            raise DataError(f"Nothing is held out in {self._prepared.directory}: set config.data.validation above 0.")
        losses = [self._loss(number, model, rows, companions) for number in range(len(self._sources))]
        weights = [self._weight(source, rows) for source in self._sources]
        judged = [source for source, weight in zip(self._sources, weights, strict=True) if weight]
        found = self._objective.figures(added(losses, weights), self.about(judged))
        if len(self._prepared.sources) > 1:
            for name, source, loss in zip(names(self._sources), self._sources, losses, strict=True):
                own = self._objective.figures(loss, self.about([source]))
                if not source.weight:
                    own.pop("unigram", None)  # token frequencies are counted on the sources that train
                found |= {f"{name}/{figure}": value for figure, value in own.items()}
        return {f"validation/{name}": value for name, value in found.items()}

    def about(self, sources: Sequence[PreparedSource] | None = None, compressors: Mapping[str, float] = {}) -> HeldOut:
        """Returns the facts about these sources (None: those that train) that the objective needs for its figures."""
        prepared = self._prepared
        why = no_bits_per_byte(prepared, self._corruption, sources)
        if sources is None:
            sources = [source for source in self._sources if source.weight]
        per_token = None if why else bytes_per_token(sources)
        return HeldOut(prepared.labels, per_token, why, prepared.validation_bytes, compressors)

    def _loss(self, number: int, model, rows: int | None, companions) -> Loss:
        """Returns the sums of the objective over a source."""
        batches = self._batches(self._sources[number], rows, self._config.batch_size, self._mine)
        loss = total(self._step, model, batches, self._put, companions)
        if self._objective.predicts_tokens:
            # Numbers on the host, as perplexity.total returns them.
            metrics: dict[str, Any] = loss.metrics | {"unigram": self._baseline(number, rows)}
            loss = loss._replace(metrics=metrics)
        return loss

    def _weight(self, source: PreparedSource, rows: int | None) -> float:
        """Returns the factor of a source's sums in the sum of all sources.

        It is 0 if the source is only watched, and above 1 if not all of its rows are read.
        """
        judges = source.weight > 0 or not any(other.weight for other in self._sources)
        return judges * source.validation_rows / min(rows or source.validation_rows, source.validation_rows)

    def _batches(self, source: PreparedSource, limit: int | None, size: int, mine=None):
        return pipeline.validation_batches(self._prepared, size, mine, limit, self._corruption, source)

    def _unigram(self, number: int, rows: int | None) -> float:
        """Returns the unigram baseline of a source in nats, summed over its targets.

        Every process counts all rows, so all processes get the same number.
        """
        return unigram(self._nats, self._batches(self._sources[number], rows, BASELINE_ROWS))

    @functools.cached_property
    def _nats(self):
        """The nats of each token, by its frequency among the training targets."""
        train = pipeline.train_pipeline(
            self._prepared,
            BASELINE_ROWS,
            self._config.seed,
            corruption=self._corruption,
            max_damaged=self._config.data.max_bad_lines,
        )
        with contextlib.closing(train):
            return nats_of_targets(iter(train.next, None), self._prepared.vocab_size)


def names(sources: list[PreparedSource]) -> list[str]:
    """Returns a name for each source; sources with the same name are numbered."""
    plain = [source.name for source in sources]
    return [name if plain.count(name) == 1 else f"{name}_{plain[:i].count(name) + 1}" for i, name in enumerate(plain)]


def bytes_per_token(sources: Sequence[PreparedSource]) -> float:
    """Returns the UTF-8 bytes per target token of the held-out text of these sources."""
    return sum(source.validation_bytes for source in sources) / max(sum(s.validation_tokens for s in sources), 1)


def no_bits_per_byte(
    prepared: Prepared, corrupted: corrupt.Corruption | None, sources: Iterable[PreparedSource] | None = None
) -> str:
    """Returns why the loss can't be converted to bits per byte of the held-out text; '' if it can.

    Args:
      prepared: the data.
      corrupted: how the text is corrupted; None: not at all.
      sources: those that are evaluated; None: those that train.
    """
    if prepared.labels is not None:
        return "the targets are labels"
    for source in (source for source in prepared.sources if source.weight) if sources is None else sources:
        if source.kind != kinds.TEXT:
            return f"only the answers of {source.spec} are predicted"
        if corrupted is not None:
            return "the text is corrupted, and only a part of it is predicted"
        if altered := prepared.altered(source):
            return (
                f"the tokenizer loses text: {altered:,} of {source.validation_documents:,} held-out documents of "
                f"{source.spec} are not what their tokens decode to"
            )
    return ""


def before_and_after(rows: list[dict], best: int | None, meanings: Mapping[str, str] = {}) -> str:
    """Returns a table of the first and the last evaluation; '' if there are fewer than two.

    Args:
      rows: the rows of metrics.jsonl.
      best: step of the best evaluation, which gets a column between them if it is neither; None: no such column.
      meanings: explanations of metrics (Objective.meanings), which stand behind them.
    """
    found = recorded.evaluations(rows)
    if len(found) < 2:
        return ""
    lines = evaluations.table(found, best, meanings)
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = {0, *(at for at, head in enumerate(lines[0]) if head == evaluations.MEANING)}
    cell = lambda at, text: text.ljust(wide[at]) if at in texts else text.rjust(wide[at])
    return "".join("  ".join(cell(*part) for part in enumerate(line)).rstrip() + "\n" for line in lines)
