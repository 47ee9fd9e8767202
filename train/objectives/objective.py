"""What an objective is: a loss, and everything that belongs to it.

An objective is a frozen dataclass whose fields are its settings (config.objective), and whose call is the loss:

    objective(model, batch, key, **companions) -> Loss

Whoever builds, checks, evaluates or reports a run asks the objective; nobody compares its name with a string. To add
one, write a class in this folder and a line in table.py.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from model.config import ModelConfig
from train.losses import Loss


class Companion(NamedTuple):
    """A frozen model beside the one that trains: a reference, a teacher, a reward model, a value model."""

    name: str  # how the objective's call names it
    field: str  # of the config: the workdir that holds it, such as 'init_from' or 'teacher'


class HeldOut(NamedTuple):
    """What the figures of held-out data need to know about the data."""

    labels: Mapping[str, Any] | None = None  # of the labels trained on (PreparedSource.facts); None: there are none
    bytes_per_token: float | None = None  # UTF-8 bytes per predicted token; None: the tokens do not spell a whole text
    no_bits_per_byte: str = ""  # why not
    bytes: int = 0  # of the whole text
    compressors: Mapping[str, float] = {}  # bits per byte that compressors reach on it, by name


@dataclasses.dataclass(frozen=True)
class Objective:
    """The base of all objectives."""

    heads: ClassVar[tuple[str, ...]]  # the heads of a model (model/config.py) that it can train
    companions: ClassVar[tuple[Companion, ...]] = ()
    predicts_tokens: ClassVar[bool]  # `loss` is nats a token: then there are a perplexity and a unigram baseline
    # Its own figures of an evaluation -> whether lower is better. Others follow from their names (early_stopping.py).
    lower_is_better: ClassVar[Mapping[str, bool]] = {}

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        """Refuses models and data that it cannot learn from, before data are prepared.

        Args:
          data: the block `data` of a config.

        Raises:
          ValueError: names the field as a config does.
        """
        raise NotImplementedError

    def head(self, data: Mapping[str, Any]) -> str | None:
        """The head that the data need, where a run gets a new one for them; None: the model's own head is trained."""
        return None

    def about(self, labels: Mapping[str, Any] | None) -> "Objective":
        """The same objective, with what is known only once data are prepared: the labels that are learnt."""
        return self

    def __call__(self, model, batch: Mapping, key, **companions) -> Loss:
        """Sums over a batch (data/batch.py).

        Args:
          key: random, for dropout; None in an evaluation.
          companions: a frozen model for each of `companions`.
        """
        raise NotImplementedError

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        """What is reported of held-out data: `loss` and others, from the sums over an evaluation."""
        raise NotImplementedError

    def lines(self, figures: Mapping[str, float], held_out: HeldOut) -> Iterator[str]:
        """The figures as lines that a person reads."""
        yield from (f"  {name:18} {value:.4f}" for name, value in figures.items())
