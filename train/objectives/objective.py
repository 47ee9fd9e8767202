"""The interface of an objective: a loss, and everything that belongs to it.

An objective is a frozen dataclass. Its fields are its settings (config.objective), and calling it computes the loss:

    objective(model, batch, key, **companions) -> Loss

Code that builds, checks, evaluates or reports a run calls methods of the objective, and never compares its name with a
string. To add an objective, write a class in this folder and add a line to table.py.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

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
    baselines: Mapping[str, str] = {}  # metrics of the same evaluation to compare it with, and their names for readers
    others: str = ""  # the key of summary.json that has more values to compare it with, by name


class HeldOut(NamedTuple):
    """Facts about the held-out data that the metrics of an evaluation need."""

    labels: Mapping[str, Any] | None = None  # facts about the training labels (PreparedSource.facts), if there are any
    bytes_per_token: float | None = None  # UTF-8 bytes per predicted token; None if the tokens are not the whole text
    no_bits_per_byte: str = ""  # the reason, if bytes_per_token is None
    bytes: int = 0  # UTF-8 bytes of the whole held-out text
    compressors: Mapping[str, float] = {}  # bits per byte of compressors on this text, by name


@dataclasses.dataclass(frozen=True)
class Objective:
    """The base of all objectives."""

    config: ClassVar[str] = ""  # the config file that sets this objective, for messages
    # Whether `loss` is in nats per token. If so, evaluations have a perplexity and a unigram baseline.
    predicts_tokens: ClassVar[bool]
    # What `lines` prints above the metrics of an evaluation, and behind each one as its explanation.
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
    # {metric of its evaluations: whether lower is better}, for metrics whose names do not show it (early_stopping.py).
    lower_is_better: ClassVar[Mapping[str, bool]] = {}

    @property
    def companions(self) -> tuple[Companion, ...]:
        """The frozen models that a call gets as arguments."""
        return ()

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        """Raises an error if this objective does not fit the model or the data. It runs before data are prepared.

        Args:
          model: the architecture.
          data: config.data.

        Raises:
          ValueError: the message names the field, such as config.model.head.
        """
        raise NotImplementedError

    def head(self, data: Mapping[str, Any]) -> str | None:
        """Returns the new head that the model needs for these data, or None if the model's own head is trained."""
        return None

    def about(self, labels: Mapping[str, Any] | None) -> "Objective":
        """Returns the objective completed with facts about the training labels, known once data are prepared."""
        return self

    def sampling(self, temperature: float, vocab_size: int) -> "Objective":
        """Returns the objective completed with how answers are sampled: the temperature, and how many ids there are."""
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

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        """Returns the metrics of an evaluation by name, `loss` first, from the sums over the held-out data."""
        raise NotImplementedError

    def lines(self, figures: Mapping[str, float], held_out: HeldOut) -> Iterator[str]:
        """Yields the metrics of an evaluation as lines of text."""
        yield self.heading
        for name, value in figures.items():
            yield f"  {name:18} {value:.4f}  {self.meanings.get(name, '')}".rstrip()
