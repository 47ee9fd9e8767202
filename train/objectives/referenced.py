"""Objectives that compare the model's log-probabilities with those of a frozen reference.

The reference's may be computed beside the model in every step, or once before training (`precompute`): then they are a
channel of the rows, and the step needs neither the memory of the reference nor its forward pass.

Dims: B rows, T length.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from data.batch import Channel
from model.output import Output
from train.objectives.objective import Companion, Objective
from train.token_logprobs import token_logprobs

LOGPROBS = Channel("reference_logprobs", "float32")


@dataclasses.dataclass(frozen=True)
class Referenced(Objective):
    """The base of these objectives.

    Args:
      precompute: read the reference's log-probabilities from the rows. Evaluations then have no `kl`, which needs the
        probabilities of all tokens.
    """

    precompute: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def compares(self) -> bool:
        """Whether the loss has a reference at all."""
        return True

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (Companion("reference", "init_from"),) if self.compares and not self.precompute else ()

    @property
    def channels(self) -> tuple[Channel, ...]:
        return (LOGPROBS,) if self.precompute else ()

    def beside(self) -> "Referenced":
        return dataclasses.replace(self, precompute=False)

    def check_rows(self, data: Mapping[str, Any], asks: bool) -> None:
        """Raises a ValueError if the rows that a step sees are not those on disk; `asks`: the data are prompts."""
        if not self.precompute:
            return
        if asks:
            raise ValueError(
                "config.objective.precompute is for answers in the data, but to prompts the model samples its own; set "
                "it to False"
            )
        if any((data.get("augment") or {}).values()):
            raise ValueError(
                "config.objective.precompute keeps log-probabilities of rows as they are on disk, but "
                "config.data.augment changes them anew in each epoch; set one of the two back"
            )


def reference_logprobs(batch: Mapping[str, jax.Array], reference=None) -> tuple[Output | None, jax.Array]:
    """Returns (the reference's output, its log p(target) of each token, float32 [B, T], without a gradient).

    Args:
      batch: with the channel LOGPROBS if there is no reference.
      reference: the frozen model; None: its log-probabilities are in the batch, and its output is None.
    """
    if reference is None:
        return None, batch[LOGPROBS.name]
    output = reference.output(reference(*(batch[name] for name in ("tokens", "segment_ids", "positions"))).x_BTD)
    return output, jax.lax.stop_gradient(token_logprobs(output, batch["targets"]))
