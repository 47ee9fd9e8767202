"""The interface of an objective: a loss, and everything that belongs to it.

An objective is a frozen dataclass. Its fields are its settings (config.objective), and calling it computes the loss:

    objective(model, batch, key, **companions) -> Loss

Code that builds, checks, evaluates or reports a run calls methods of the objective, and never compares its name with a
string. To add an objective, write a class in this folder and add a line to table.py.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, ClassVar, NamedTuple

from data.batch import Channel
from model.config import ModelConfig
from train.losses import Loss


class Companion(NamedTuple):
    """A frozen model that an objective uses: a reference, a teacher, a reward model or a value model."""

    name: str  # name of the argument in the objective's call
    field: str  # field of the config that holds its workdir, such as 'init_from' or 'teacher'


class Headline(NamedTuple):
    """A metric of evaluations that a report shows first."""

    metric: str  # the name in `figures`
    label: str  # its name for readers
    where: str  # what it was measured on
    # What to compare it with: metrics of the same evaluation or constants, and their names for readers.
    baselines: Mapping[str | float, str] = {}
    others: str = ""  # the key of summary.json that has more values to compare it with, by name


class Curve(NamedTuple):
    """A plot over the steps of a run, in its report.

    Each metric has a line where lines of training have its name, and dots where evaluations have it. Without either it
    is left out, so a curve may be declared for what only some runs measure.
    """

    metrics: tuple[str, ...]  # a name that ends in /*, such as 'reward/*', stands for all that begin like it
    title: str
    meaning: str = ""  # a line for readers; '' takes the one that `meanings` has for a single metric
    baselines: Mapping[str | float, str] = {}  # dashed lines, as in Headline
    log: bool = False  # whether the axis is logarithmic where values span more than a factor of 4
    smooth: bool = True  # whether a line is thin, with a smoothed one on top


class Bins(NamedTuple):
    """A plot of the share of answers that an evaluation found right, by bins of another quantity x, in the report."""

    metric: str  # the name in `figures` of an array [bins, 3]: weight, and weighted sums of x and of what is right
    title: str
    x: str  # the label of its axis
    meaning: str
    baseline: float | None = None  # a horizontal line; None: the diagonal, where x is the predicted share


class HeldOut(NamedTuple):
    """Facts about the held-out data that the metrics of an evaluation need."""

    labels: Mapping[str, Any] | None = None  # facts about the training labels (PreparedSource.facts), if there are any
    bytes_per_token: float | None = None  # UTF-8 bytes per predicted token; None if the tokens are not the whole text
    no_bits_per_byte: str = ""  # the reason, if bytes_per_token is None
    bytes: int = 0  # UTF-8 bytes of the whole held-out text
    compressors: Mapping[str, float] = {}  # bits per byte of compressors on this text, by name


LOSS = Curve(("loss",), "Loss", log=True)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The base of all objectives."""

    config: ClassVar[str] = ""  # the config file that sets this objective, for messages
    # Whether `loss` is in nats per token. If so, evaluations have a perplexity and a unigram baseline.
    predicts_tokens: ClassVar[bool]
    # What `lines` prints above the metrics of an evaluation, and behind each one as its explanation. A key that ends in
    # /* explains all metrics that begin like it.
    heading: ClassVar[str] = "held-out data, not used in training:"
    meanings: ClassVar[Mapping[str, str]] = {}
    # Whether the score of a text is read at its end token. If not, it is read at the token before, or there is none.
    scores_end: ClassVar[bool] = False
    # Metrics of training that the progress line shows besides the loss.
    progress: ClassVar[tuple[str, ...]] = ()
    # What it reads of the answers that the model samples during training (train/align/rollouts.py): 'advantages' of
    # their tokens, 'pairs' of a better and a worse one; '': it can't learn from them.
    rollouts: ClassVar[str] = ""
    # The range of each numeric setting, as text: 'float [0, 1)' (model/ranges.py).
    ranges: ClassVar[Mapping[str, str]] = {}
    # What a report shows first: the first of these that an evaluation has.
    headlines: ClassVar[tuple[Headline, ...]] = (Headline("loss", "loss", "on held-out data"),)
    # What a report draws: over the steps of a run, the first one large, and for the last evaluation.
    curves: ClassVar[tuple[Curve, ...]] = (LOSS,)
    bins: ClassVar[tuple[Bins, ...]] = ()
    # {metric of its evaluations: whether lower is better}, for metrics whose names do not show it (early_stopping.py).
    lower_is_better: ClassVar[Mapping[str, bool]] = {}

    @property
    def companions(self) -> tuple[Companion, ...]:
        """The frozen models that a call gets as arguments."""
        return ()

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What its batches have beside the channels of the data: numbers that a companion gave before training."""
        return ()

    def beside(self) -> "Objective":
        """Returns the objective that computes these numbers itself, with the companion beside the model."""
        return self

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        """Raises an error if this objective does not fit the model or the data. It runs before data are prepared.

        Args:
          model: the architecture.
          data: config.data.

        Raises:
          ValueError: the message names the field, such as config.model.head.
        """
        raise NotImplementedError

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Yields (field, reason) of settings that are not at their defaults, but that nothing reads."""
        yield from ()

    def head(self, data: Mapping[str, Any]) -> str | None:
        """Returns the new head that the model needs for these data, or None if the model's own head is trained."""
        return None

    def about(self, labels: Mapping[str, Any] | None) -> "Objective":
        """Returns the objective completed with facts about the training labels, known once data are prepared."""
        return self

    def sampling(self, temperature: float, max_new_tokens: int, vocab_size: int) -> "Objective":
        """Returns the objective completed with how answers are sampled, and with how many ids there are."""
        return self

    # *_ and **companions are Any, so that a type checker lets an objective name its companions as arguments.
    def __call__(self, model: Any, batch: Mapping[str, Any], key: Any, *_: Any, **companions: Any) -> Loss:
        """Returns the sums of the loss and its metrics over a batch (data/batch.py).

        Args:
          model: the model that trains.
          batch: arrays by name.
          key: random key for dropout; None in an evaluation.
          companions: the frozen models that the property `companions` names.
        """
        raise NotImplementedError

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, Any]:
        """Returns the metrics of an evaluation by name, `loss` first, from the sums over the held-out data.

        They are numbers. What the plots of `bins` need are lists, which only the report reads.
        """
        raise NotImplementedError

    def lines(self, figures: Mapping[str, Any], held_out: HeldOut) -> Iterator[str]:
        """Yields the metrics of an evaluation as lines of text."""
        yield self.heading
        for name, value in numbers(figures).items():
            yield f"  {name:18} {value:.4f}  {meaning(name, self.meanings)}".rstrip()


def numbers(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers among the figures of an evaluation or of a line of metrics.jsonl, without lists and texts."""
    return {name: value for name, value in figures.items() if isinstance(value, Real)}


def family(name: str, names: Iterable[str]) -> list[str]:
    """Returns [name]; if it ends in /*, all `names` that begin like it, such as 'reward/length' for 'reward/*'."""
    return [one for one in names if one.startswith(name[:-1])] if name.endswith("/*") else [name]


def meaning(name: str, meanings: Mapping[str, str]) -> str:
    """Returns the explanation of a metric, or of its family; '' if there is none."""
    found = (text for key, text in meanings.items() if name in family(key, [name]))
    return meanings.get(name) or next(found, "")
