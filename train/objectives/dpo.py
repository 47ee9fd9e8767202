"""Direct preference optimization (DPO, arXiv:2305.18290): prefer the chosen answer of a pair to the rejected one.

The implicit reward of an answer is beta * log(p / p_reference), summed over its tokens, where the reference is the
model that the run began with. The loss of a pair is -log sigmoid(chosen answer's reward - rejected answer's reward).

The two answers of a pair are segments of one row (data/examples/preferences.py); `group_ids` and `ranks` tell which.

Dims: B rows, T length, G pairs of a row, n chunks of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from data.examples import kinds
from model.config import ModelConfig
from train.losses import Loss
from train.objectives import routing
from train.objectives.objective import Companion, Headline, HeldOut, Objective
from train.token_logprobs import token_logprobs

# The metrics, with explanations that are printed beside those of an evaluation.
_MEANINGS = {
    "loss": "nats per pair; 0.6931 for a model that is its reference",
    "accuracy": "pairs whose chosen answer has the larger reward",
    "margin": "mean reward of chosen answers minus that of rejected ones",
    "chosen_reward": "mean reward of chosen answers",
    "rejected_reward": "mean reward of rejected answers",
}

_CHUNK = 16  # pairs of a row that are summed at a time


@dataclasses.dataclass(frozen=True)
class Dpo(Objective):
    """The DPO loss, whose metrics are means over pairs.

    Args:
      beta: a larger one keeps the model nearer to the reference.
      balance_loss, router_z_loss: see routing.with_routers.
    """

    beta: float = 0.1
    balance_loss: float = 0.0
    router_z_loss: float = 0.0

    companions: ClassVar = (Companion("reference", "init_from"),)
    predicts_tokens: ClassVar = False
    headlines: ClassVar = (Headline("accuracy", "accuracy of implicit rewards", "on held-out preferences"),)
    ranges: ClassVar = {"beta": "float (0, inf)"} | routing.RANGES
    lower_is_better: ClassVar = {"margin": False, "chosen_reward": False, "rejected_reward": True}

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        if (model.architecture, model.head) != ("decoder", "language_model"):
            raise ValueError(
                f"config.model is of architecture {model.architecture!r} with head {model.head!r}; "
                "config.objective.name 'dpo' needs a decoder with head 'language_model'"
            )
        if others := sorted({kinds.kind_of(spec) for spec, _ in kinds.sources(data)} - {"preferences"}):
            raise ValueError(
                f"config.objective.name 'dpo' can learn only from preferences, but config.data also has "
                f"{', '.join(others)}; remove these, or set config.data.format to 'preferences' if config.data.path is "
                "of preferences"
            )

    def __call__(self, model, batch, key, *, reference) -> Loss:
        rows = [batch[name] for name in ("tokens", "segment_ids", "positions")]
        hidden = model(*rows, key=key)
        own_BT = token_logprobs(model.output(hidden.x_BTD), batch["targets"])
        other_BT = token_logprobs(reference.output(reference(*rows).x_BTD), batch["targets"])
        rewards_BT = self.beta * batch["weights"] * (own_BT - jax.lax.stop_gradient(other_BT))
        parts = [jnp.where(batch["ranks"] == rank, rewards_BT, 0) for rank in (0, 1)]
        chosen_nBG, rejected_nBG, weights_nBG = _by_group(batch["group_ids"], *parts, batch["weights"])
        margin_nBG, counts_nBG = chosen_nBG - rejected_nBG, weights_nBG > 0
        values = {
            "loss": -jax.nn.log_sigmoid(margin_nBG),
            "accuracy": (margin_nBG > 0).astype(jnp.float32),
            "margin": margin_nBG,
            "chosen_reward": chosen_nBG,
            "rejected_reward": rejected_nBG,
        }
        sums = {name: jnp.where(counts_nBG, values_nBG, 0).sum() for name, values_nBG in values.items()}
        loss = Loss(sums["loss"], counts_nBG.astype(jnp.float32).sum(), jax.lax.stop_gradient(sums))
        return routing.with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        return {name: float(loss.metrics[name]) / max(float(loss.weight), 1e-9) for name in _MEANINGS}

    def lines(self, figures: Mapping[str, float], held_out: HeldOut) -> Iterator[str]:
        yield "held-out preferences, not used in training:"
        yield from (f"  {name:18} {value:.4f}  {_MEANINGS.get(name, '')}".rstrip() for name, value in figures.items())


def _by_group(groups_BT, *values_BT):
    """Returns the sums of each of the values over each group of a row, [n, B, G].

    Every token is compared with every group, because a mesh may split and reorder the length; some groups at a time,
    because all of them would be an array [B, T, T / 2].
    """
    most = max(groups_BT.shape[1] // 2, 1)  # a group has two segments at least

    @jax.checkpoint
    def sums(ids_G):
        inside_BTG = groups_BT[..., None] == ids_G
        return tuple(jnp.where(inside_BTG, values[..., None], 0).sum(1) for values in values_BT)

    return jax.lax.map(sums, jnp.arange(1, -(-most // _CHUNK) * _CHUNK + 1).reshape(-1, _CHUNK))
