"""What a run is judged by: figures of held-out text and examples, of each source, before and after."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import pipeline
from data.batch import DataError
from data.examples import kinds
from data.prepared import Prepared, PreparedSource
from data.rows import corrupt
from launch.program.checking import ConfigError
from launch.run import build
from train.evals import label_metrics
from train.evals.perplexity import added, figures, total
from train.evals.unigram import nats_of_targets, unigram

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


def evaluation(config: ConfigDict, prepared: Prepared, corrupted: corrupt.Corruption | None, eval_step, mesh: Mesh):
    """(model, rows) -> figures of what is held out: `rows` of each source, None: all of it. The same in every process.

    `validation/loss` and the like are those of all sources that train, every token weighted once (where not all rows
    are read, sources still count by what they hold); of labels there are accuracy and the like
    (train/evals/label_metrics.py). With several sources, `validation/SOURCE/loss` and the like are those of each, also
    of sources of weight 0, which are only watched.
    """
    sources = [source for source in prepared.sources if source.validation_rows]
    put, mine = build.put(mesh), build.batch_rows(mesh, config.batch_size)

    def batches(source: PreparedSource, limit, size: int, mine=None):
        return pipeline.validation_batches(prepared, size, mine, limit, corrupted, source)

    @functools.cache
    def nats():
        bad = config.data.max_bad_lines
        train = pipeline.train_pipeline(prepared, BASELINE_ROWS, config.seed, corruption=corrupted, max_damaged=bad)
        with contextlib.closing(train):
            return nats_of_targets(iter(train.next, None), prepared.vocab_size)

    @functools.cache
    def baseline(number: int, rows) -> float:
        """What token frequencies alone reach; every process counts all rows, so all agree."""
        return unigram(nats(), batches(sources[number], rows, BASELINE_ROWS))

    def judge(loss, of: list[PreparedSource]) -> dict[str, float]:
        if prepared.labels is not None:
            return label_metrics.figures(loss, prepared.labels)
        return figures(loss, None if no_bits_per_byte(prepared, corrupted, of) else bytes_per_token(of))

    def run(model, rows) -> dict[str, float]:
        if not sources:
            raise DataError(f"Nothing is held out in {prepared.directory}: set config.data.validation above 0.")
        losses, missing = [], []
        for number, source in enumerate(sources):
            loss = total(eval_step, model, batches(source, rows, config.batch_size, mine), put)
            if prepared.labels is None:
                loss = loss._replace(metrics=loss.metrics | {"unigram": baseline(number, rows)})
            losses.append(loss)
            count = source.validation_rows
            judges = source.weight > 0 or not any(other.weight for other in sources)
            missing.append(judges * count / min(rows or count, count))
        judged = [source for source, factor in zip(sources, missing, strict=True) if factor]
        found = judge(added(losses, missing), judged)
        if len(prepared.sources) > 1:
            for name, source, loss in zip(names(sources), sources, losses, strict=True):
                of_source = judge(loss, [source])
                if not source.weight:  # the frequencies are those of other text
                    of_source.pop("unigram", None)
                found |= {f"{name}/{figure}": value for figure, value in of_source.items()}
        return {f"validation/{name}": value for name, value in found.items()}

    return run


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


def described(figures: dict, prepared: Prepared, compressors: dict, no_bits: str) -> Iterator[str]:
    """Lines that a person reads of all figures of what was held out, named without `validation/`; `no_bits` says why
    there are no bits per byte."""
    if prepared.labels:
        return _labelled(figures, prepared.labels)
    return _predicted(figures, prepared, compressors, no_bits)


def _predicted(figures: dict, prepared: Prepared, compressors: dict, no_bits: str) -> Iterator[str]:
    if "bits_per_byte" in figures:
        yield f"held-out text: {prepared.validation_bytes:,} bytes, never trained on"
        for name, value in {"this model": figures["bits_per_byte"], **compressors}.items():
            yield f"  {name:12} {value:6.3f} bits per byte"
    else:
        yield "what was held out, never trained on:"
        yield f"  no bits per byte, as {no_bits}"
    yield f"  loss {figures['loss']:.4f} nats a token, perplexity {figures['perplexity']:.2f}"
    yield f"  token frequencies alone: {figures['unigram']:.4f} nats a token"
    yield from (f"  {name} {value:.4f}" for name, value in figures.items() if "/" in name)


def _labelled(figures: dict, labels: Mapping) -> Iterator[str]:
    yield "labels that were held out, never trained on:"
    meanings = {"macro_f1": "mean F1 of the classes", "matthews": "Matthews correlation", "loss": "nats a label"}
    meanings |= {"majority_accuracy": "accuracy of always saying the most frequent class of training"}
    meanings |= {"mean_mse": "mean squared error of always saying the mean of training", "pearson": "correlation"}
    meanings |= {"entity_f1": "F1 of whole entities, as CoNLL's script and seqeval count"}
    if "names" in labels:
        meanings["f1"] = f"F1 of {labels['names'][1]!r}"
    else:
        meanings["loss"] = "the mean squared error"
    for name, value in figures.items():
        yield f"  {name:18} {value:.4f}  {meanings.get(name, '')}".rstrip()
