"""A reward model: a score of a whole answer, learned from answers of which some are better than others.

    pairs    -log sigmoid(better - worse - margin * how much better it is), the mean over all pairs of a list
             (Bradley and Terry; InstructGPT, arXiv:2203.02155, equation 1; margins: Llama 2, arXiv:2307.09288,
             equation 2)
    list     -log of the probability of each choice among what is left of a list, the mean over choices
             (Plackett and Luce; segments.py, over_choices)

The score is that of the model's head at the conversation's last token, where transformers' classifiers read it. Only
differences of scores count, so their level is free; `centre` keeps it near 0 (arXiv:2312.09244, section 3.1).

Dims: B rows, T length, C and S segments of a row, N bins.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from data.examples import kinds
from model.config import ModelConfig
from train.losses import Loss
from train.objectives import routing
from train.objectives.objective import LOSS, Bins, Curve, Headline, HeldOut, Objective
from train.objectives.segments import over_choices, over_pairs, segments, share_won

METHODS = ("pairs", "list")
BINS = 10  # of the probabilities from 0.5 to 1 that the better-scored answer is better
# Lower ends of the bins of margins but the first, which begins at 0. Margins may have any unit, so a bin is half as
# wide as an octave: whole numbers up to 4 have bins of their own.
MARGINS = tuple(2 ** (n / 2) for n in range(-12, 14))

# The metrics of evaluations, with explanations that are printed beside them.
_MEANINGS = {
    "loss": "nats per example, with the term of `centre`; log 2 = 0.6931 without it if all scores are equal",
    "accuracy": "pairs whose better answer has the larger score; equal scores count half",
    "margin": "mean score of better answers minus that of worse ones",
    "calibration_error": "mean difference between the predicted and the true share of better answers",
    "score": "mean score of all answers",
}

_BY = "The share of pairs whose better answer has the larger score, against how {} better {} it is."


@dataclasses.dataclass(frozen=True)
class Reward(Objective):
    """The mean loss over examples.

    Args:
      method: 'pairs' or 'list'. Metrics are those of pairs, whatever is learned.
      margin: how far apart the scores of a pair should be per unit of the difference that the data state
        (config.data.rankings.margin), for method 'pairs'.
      centre: weight of the squared sum of a pair's scores, which is added.
      balance_loss, router_z_loss: see routing.with_routers.
    """

    method: str = "pairs"
    margin: float = 0.0
    centre: float = 0.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0

    config: ClassVar = "configs/reward.py"
    predicts_tokens: ClassVar = False
    heading: ClassVar = "held-out rankings, not used in training:"
    meanings: ClassVar = _MEANINGS
    scores_end: ClassVar = True
    headlines: ClassVar = (Headline("accuracy", "accuracy of pairs", "on held-out rankings", {0.5: "chance"}),)
    curves: ClassVar = (
        LOSS,
        Curve(("accuracy",), "Accuracy", baselines={0.5: "chance"}),
        Curve(("margin",), "Margin"),
        Curve(("calibration_error",), "Calibration error"),
        Curve(("score",), "Score"),
    )
    bins: ClassVar = (
        Bins(
            "reliability",
            "Reliability",
            "predicted probability",
            "The share of pairs whose better-scored answer is better, against the probability that the scores predict. "
            "Below the diagonal the model is too sure.",
        ),
        Bins(
            "by_margin", "Accuracy by margin", "margin that the data state", _BY.format("clearly", "the data say"), 0.5
        ),
        Bins(
            "by_difference",
            "Accuracy by difference of scores",
            "difference of scores",
            _BY.format("surely", "the model says"),
            0.5,
        ),
    )
    ranges: ClassVar = {"margin": "float [0, inf)", "centre": "float [0, inf)"} | routing.RANGES
    lower_is_better: ClassVar = {"margin": False, "calibration_error": True, "score": False}

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; choose from {', '.join(METHODS)}")
        if self.margin and self.method != "pairs":
            raise ValueError(f"margin has no effect in method {self.method!r}; set it to 0")

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
        stated = kinds.checked(data)["rankings"]["margin"]
        if bool(stated) != bool(self.margin):
            raise ValueError(
                f"config.objective.margin is {self.margin} and config.data.rankings.margin is {stated!r}; set both "
                "(how much margins count, and the field that states them) or none"
            )

    def head(self, data: Mapping[str, Any]) -> str:
        return "sequence"

    def __call__(self, model, batch, key) -> Loss:
        hidden = model(batch["tokens"], batch["segment_ids"], batch["positions"], key=key)
        scores_BT = model.classes(hidden.x_BTD)[..., 0].astype(jnp.float32)
        # Only the last token of an answer has a weight.
        stated_BT = batch["scores"] if self.margin else jnp.zeros_like(scores_BT)
        parts = {"score": scores_BT, "stated": stated_BT, "count": jnp.ones_like(scores_BT)}
        found = segments(batch, {name: batch["weights"] * value for name, value in parts.items()})
        measure = self._evaluated if key is None else self._trained
        values = [found.sums_BS[name] for name in ("score", "stated")]
        sums = over_pairs(measure, found, found.sums_BS["count"] > 0, *values)
        examples = sums.pop("pairs")
        if self.method == "list":
            chosen = over_choices(found, found.sums_BS["count"] > 0, found.sums_BS["score"])
            sums["loss"] += chosen
        loss = Loss(sums["loss"], examples, jax.lax.stop_gradient(sums))
        return routing.with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def _trained(self, scores, stated) -> dict:
        better, worse = scores
        z = better - worse
        loss = -log_sigmoid(z - self.margin * (stated[0] - stated[1])) if self.method == "pairs" else 0.0
        return {
            "loss": self.centre * jnp.square(better + worse) + loss,
            "accuracy": share_won(z),
            "margin": z,
            "score": (better + worse) / 2,
        }

    def _evaluated(self, scores, stated) -> dict:
        """Also sums by bins, as the tables that `bins` describe: of pairs, of x, and of how often they are right."""
        better, worse = scores
        z = better - worse
        sure = jax.nn.sigmoid(jnp.abs(z))
        place = jnp.clip(((sure - 0.5) * 2 * BINS).astype(jnp.int32), 0, BINS - 1)
        inside = [(place == n).astype(jnp.float32) for n in range(BINS)]
        found = self._trained(scores, stated)
        found["reliability"] = [inside, [one * sure for one in inside], [one * share_won(z) for one in inside]]
        # A margin that the data state tells easy pairs from hard ones; without it, what the model thinks of them does.
        name, apart = ("by_margin", stated[0] - stated[1]) if self.margin else ("by_difference", jnp.abs(z))
        among = jnp.stack([apart >= end for end in MARGINS]).sum(0)
        inside_NBCS = (among == jnp.arange(len(MARGINS) + 1)[:, None, None, None]).astype(jnp.float32)
        found[name] = [inside_NBCS, inside_NBCS * apart, inside_NBCS * share_won(z)]
        return found

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, Any]:
        tables = {one.metric: loss.metrics[one.metric] for one in self.bins if one.metric in loss.metrics}
        _, sure, right = tables["reliability"]
        sums = {**loss.metrics, "calibration_error": sum(abs(float(x - y)) for x, y in zip(sure, right, strict=True))}
        means = {name: float(sums[name]) / max(float(loss.weight), 1e-9) for name in _MEANINGS}
        return means | {name: np.asarray(table, float).T.tolist() for name, table in tables.items()}
