"""A reward model: a score of a whole answer, learned from answers of which some are better than others.

The score is that of the model's head at the conversation's last token, where transformers' classifiers read it. The
loss of a pair is that of Bradley and Terry, -log sigmoid(better - worse) (InstructGPT, arXiv:2203.02155, equation 1);
a list of answers gives all its pairs (segments.py). Only differences of scores count, so their level is free;
`centre` keeps it near 0 (arXiv:2312.09244, section 3.1).

Dims: B rows, T length, S segments of a row, N bins.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from data.examples import kinds
from model.config import ModelConfig
from train.losses import Loss
from train.objectives import routing
from train.objectives.objective import Headline, HeldOut, Objective
from train.objectives.segments import over_pairs, segments, share_won

BINS = 10  # of the probabilities from 0.5 to 1 that the better-scored answer is better, for the calibration error

# The metrics of evaluations, with explanations that are printed beside them.
_MEANINGS = {
    "loss": "nats per example, with the term of `centre`; log 2 = 0.6931 without it if all scores are equal",
    "accuracy": "pairs whose better answer has the larger score; equal scores count half",
    "margin": "mean score of better answers minus that of worse ones",
    "calibration_error": "mean difference between the predicted and the true share of better answers",
    "score": "mean score of all answers",
}


@dataclasses.dataclass(frozen=True)
class Reward(Objective):
    """The mean loss over examples.

    Args:
      centre: weight of the squared sum of a pair's scores, which is added.
      balance_loss, router_z_loss: see routing.with_routers.
    """

    centre: float = 0.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0

    config: ClassVar = "configs/reward.py"
    predicts_tokens: ClassVar = False
    heading: ClassVar = "held-out rankings, not used in training:"
    meanings: ClassVar = _MEANINGS
    scores_end: ClassVar = True
    headlines: ClassVar = (Headline("accuracy", "accuracy of pairs", "on held-out rankings"),)
    ranges: ClassVar = {"centre": "float [0, inf)"} | routing.RANGES
    lower_is_better: ClassVar = {"margin": False, "calibration_error": True, "score": False}

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        if (model.architecture, model.head, model.num_labels) != ("decoder", "sequence", 1):
            raise ValueError(
                f"config.model is of architecture {model.architecture!r} with head {model.head!r} and num_labels "
                f"{model.num_labels}; config.objective.name 'reward' needs a decoder with head 'sequence' and 1 label"
            )
        if others := sorted({kinds.kind_of(spec) for spec, _ in kinds.sources(data)} - {"rankings"}):
            raise ValueError(
                f"config.objective.name 'reward' can learn only from rankings, but config.data also has "
                f"{', '.join(others)}; remove these, or set config.data.format to 'rankings' if config.data.path is of "
                "rankings"
            )

    def head(self, data: Mapping[str, Any]) -> str:
        return "sequence"

    def __call__(self, model, batch, key) -> Loss:
        hidden = model(batch["tokens"], batch["segment_ids"], batch["positions"], key=key)
        scores_BT = model.classes(hidden.x_BTD)[..., 0].astype(jnp.float32)
        # Only the last token of an answer has a weight.
        found = segments(batch, {"score": batch["weights"] * scores_BT, "count": batch["weights"]})
        measure = self._evaluated if key is None else self._trained
        sums = over_pairs(measure, found, found.sums_BS["count"] > 0, found.sums_BS["score"])
        examples = sums.pop("pairs")
        loss = Loss(sums["loss"], examples, jax.lax.stop_gradient(sums))
        return routing.with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def _trained(self, scores) -> dict:
        better, worse = scores
        z = better - worse
        return {
            "loss": self.centre * jnp.square(better + worse) - log_sigmoid(z),
            "accuracy": share_won(z),
            "margin": z,
            "score": (better + worse) / 2,
        }

    def _evaluated(self, scores) -> dict:
        """Also sums of the calibration by bins: pairs, the probability that is predicted, and how often it is right."""
        better, worse = scores
        z = better - worse
        sure = jax.nn.sigmoid(jnp.abs(z))
        place = jnp.clip(((sure - 0.5) * 2 * BINS).astype(jnp.int32), 0, BINS - 1)
        found = self._trained(scores)
        for n in range(BINS):
            inside = (place == n).astype(jnp.float32)
            found |= {f"bin{n}": inside, f"bin{n}_sure": inside * sure, f"bin{n}_right": inside * share_won(z)}
        return found

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        apart = sum(abs(float(loss.metrics[f"bin{n}_sure"] - loss.metrics[f"bin{n}_right"])) for n in range(BINS))
        sums = {**loss.metrics, "calibration_error": apart}
        return {name: float(sums[name]) / max(float(loss.weight), 1e-9) for name in _MEANINGS}
