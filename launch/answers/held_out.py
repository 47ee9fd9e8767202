"""What a run is judged by: figures of held-out text and examples, of each source, before and after."""

import contextlib
import functools
from collections.abc import Iterable, Mapping

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

BASELINE_ROWS = 32  # rows a batch that the unigram baseline reads, whatever the run's


def check(config: ConfigDict) -> None:
    """Refuse evaluations of nothing, as far as that shows before data are prepared: a source may bring a split of its
    own, of which check_held_out knows."""
    specs = [spec for spec, _ in kinds.sources(config.data)]
    brings = config.data.labels.split or any(spec.startswith(("tfds:", "tfds[")) for spec in specs)
    if config.eval_every and not config.data.validation and not brings:
        raise ConfigError(
            f"config.data.validation is 0, so nothing is held out for the evaluations of config.eval_every "
            f"{config.eval_every}: set one above 0, or the other to 0"
        )


def check_held_out(config: ConfigDict, prepared: Prepared) -> None:
    """Refuse evaluations of nothing, once data are prepared and before anything is compiled."""
    if config.eval_every and not any(source.validation_rows for source in prepared.sources):
        raise ConfigError(
            f"nothing is held out in {prepared.directory} for the evaluations of config.eval_every "
            f"{config.eval_every}: raise config.data.validation (now {config.data.validation}), or set "
            "config.eval_every=0"
        )


class Evaluation:
    """Figures of what is held out: (model, rows of each source; None: all of them) -> {'validation/...': value}.

    `validation/loss` and the objective's other figures are those of all sources that train, every token weighted once
    (where not all rows are read, a source still counts by what it holds). With several sources there are
    `validation/SOURCE/loss` and the like for each, also for sources of weight 0, which are only watched. All processes
    get the same figures.

    Args:
      eval_step: train.step.make_eval_step of the objective.
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
                    own.pop("unigram", None)  # the token frequencies are those of other text
                found |= {f"{name}/{figure}": value for figure, value in own.items()}
        return {f"validation/{name}": value for name, value in found.items()}

    def about(self, sources: Iterable[PreparedSource] | None = None, compressors: Mapping[str, float] = {}) -> HeldOut:
        """What the objective needs to know of these sources (default: those that train) for its figures."""
        prepared = self._prepared
        why = no_bits_per_byte(prepared, self._corruption, sources)
        per_token = None if why else bytes_per_token(self._sources if sources is None else sources)
        return HeldOut(prepared.labels, per_token, why, prepared.validation_bytes, compressors)

    def _loss(self, number: int, model, rows: int | None, companions) -> Loss:
        """The sums of the objective over a source."""
        batches = self._batches(self._sources[number], rows, self._config.batch_size, self._mine)
        loss = total(self._step, model, batches, self._put, companions)
        if self._objective.predicts_tokens:
            loss = loss._replace(metrics=loss.metrics | {"unigram": self._baseline(number, rows)})
        return loss

    def _weight(self, source: PreparedSource, rows: int | None) -> float:
        """What its sums count in those of all: 0 if it is only watched, more than 1 if not all of its rows are read."""
        judges = source.weight > 0 or not any(other.weight for other in self._sources)
        return judges * source.validation_rows / min(rows or source.validation_rows, source.validation_rows)

    def _batches(self, source: PreparedSource, limit: int | None, size: int, mine=None):
        return pipeline.validation_batches(self._prepared, size, mine, limit, self._corruption, source)

    def _unigram(self, number: int, rows: int | None) -> float:
        """What token frequencies alone reach, in nats; every process counts all rows, so all agree."""
        return unigram(self._nats, self._batches(self._sources[number], rows, BASELINE_ROWS))

    @functools.cached_property
    def _nats(self):
        """Of each token, by its frequency as a target of training."""
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
    """A name for each source, numbered where several have one."""
    plain = [source.name for source in sources]
    return [name if plain.count(name) == 1 else f"{name}_{plain[:i].count(name) + 1}" for i, name in enumerate(plain)]


def bytes_per_token(sources: list[PreparedSource]) -> float:
    """Of the held-out text of sources."""
    return sum(source.validation_bytes for source in sources) / max(sum(s.validation_tokens for s in sources), 1)


def no_bits_per_byte(
    prepared: Prepared, corrupted: corrupt.Corruption | None, sources: Iterable[PreparedSource] | None = None
) -> str:
    """Why what a model says of its targets says nothing of the bytes of held-out text; '' where it does.

    Args:
      sources: by default those that train.
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


def before_and_after(rows: list[dict], best: int | None) -> str:
    """A table of the first and the last evaluation in `rows` of metrics.jsonl, and of the one after step `best` where
    that is between them; '' where there are no two."""
    evaluations = [row for row in rows if "validation/loss" in row]
    if len(evaluations) < 2:
        return ""
    first, last = evaluations[0], evaluations[-1]
    columns = {f"step {row['step']}": row for row in evaluations if row in (first, last) or row["step"] == best}
    if best not in (None, first["step"], last["step"]):
        columns = {f"{head} (best)" * (row["step"] == best) or head: row for head, row in columns.items()}
    numeric = lambda name: all(isinstance(row.get(name), int | float) for row in columns.values())
    names = [name for name in last if name.startswith("validation/") and numeric(name)]
    lines = [("held out", *columns)]
    for name in names:
        if not name.endswith("/unigram"):  # which no model changes
            lines.append((name.removeprefix("validation/"), *(f"{row[name]:.4g}" for row in columns.values())))
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join("  ".join([f"{line[0]:{wide[0]}}", *map(str.rjust, line[1:], wide[1:])]) + "\n" for line in lines)
