"""KTO: learns from answers that are judged one at a time, as good or bad (arXiv:2402.01306, equation 7).

Let r = beta * log(p / p_reference) be the implicit reward of an answer, and z a reference point that says how far the
model has moved as a whole. The loss of a good answer is 1 - sigmoid(r - z), and that of a bad one 1 - sigmoid(z - r).

z is beta * max(0, the mean of log(p / p_reference) over answers that follow the prompt of another record). It is
estimated anew from each batch, without a gradient, so it depends on the size of the batch; with config.accumulate it
comes from a part of the batch.

Dims: B rows, T length, S segments of a row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from data.examples import kinds
from model.config import ModelConfig
from train.losses import Loss
from train.objectives import routing
from train.objectives.objective import LOSS, Curve, Headline, HeldOut
from train.objectives.referenced import Referenced, reference_logprobs
from train.objectives.segments import segments, share_won
from train.token_logprobs import token_divergences, token_logprobs

# The metrics of evaluations, with explanations that are printed beside them.
_MEANINGS = {
    "loss": "mean over answers, with their weights",
    "accuracy": "good answers with a reward above the reference point, and bad ones below; equal ones count half",
    "margin": "mean reward of good answers minus that of bad ones",
    "good_reward": "mean reward of good answers",
    "bad_reward": "mean reward of bad answers",
    "reference_point": "z: beta times the KL divergence to the reference, as estimated from other prompts' answers",
    "kl": "KL divergence to the reference, nats per token of the answers",
}


@dataclasses.dataclass(frozen=True)
class Kto(Referenced):
    """The mean loss over answers.

    Args:
      beta: a larger one keeps the model nearer to the reference.
      good_weight, bad_weight: weights of the losses of good and bad answers. The paper balances the two kinds: the good
        ones together should count 1 to 4/3 times as much as the bad ones.
      balance_loss, router_z_loss: see routing.with_routers.
      precompute: see Referenced.
    """

    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0

    config: ClassVar = "configs/kto.py"
    predicts_tokens: ClassVar = False
    heading: ClassVar = "held-out judged answers, not used in training:"
    meanings: ClassVar = _MEANINGS
    headlines: ClassVar = (
        Headline("margin", "margin of implicit rewards", "on held-out judged answers"),
        Headline("loss", "loss", "on held-out judged answers, of which all have one verdict"),
    )
    curves: ClassVar = (
        LOSS,
        Curve(("accuracy",), "Accuracy", baselines={0.5: "chance"}),
        Curve(("margin",), "Margin"),
        Curve(
            ("good_reward", "bad_reward", "reference_point"),
            "Implicit rewards",
            "mean reward of good and of bad answers, and the reference point that they are compared with",
        ),
        Curve(("kl",), "KL to the reference"),
    )
    ranges: ClassVar = {
        "beta": "float (0, inf)",
        "good_weight": "float [0, inf)",
        "bad_weight": "float [0, inf)",
    } | routing.RANGES
    lower_is_better: ClassVar = {
        "margin": False,
        "good_reward": False,
        "bad_reward": True,
        "reference_point": True,
        "kl": True,
    }

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        if (model.architecture, model.head) != ("decoder", "language_model"):
            raise ValueError(
                f"config.model is of architecture {model.architecture!r} with head {model.head!r}; "
                "config.objective.name 'kto' needs a decoder with head 'language_model'"
            )
        if others := sorted({kinds.kind_of(spec) for spec, _ in kinds.sources(data)} - {"unpaired"}):
            raise ValueError(
                f"config.objective.name 'kto' can learn only from unpaired answers, but config.data also has "
                f"{', '.join(others)}; remove these, or set config.data.format to 'unpaired' if config.data.path is of "
                "judged answers"
            )
        self.check_rows(data, asks=False)

    def __call__(self, model, batch, key, *, reference=None) -> Loss:
        rows, weights_BT = [batch[name] for name in ("tokens", "segment_ids", "positions")], batch["weights"]
        hidden = model(*rows, key=key)
        output, (other, other_BT) = model.output(hidden.x_BTD), reference_logprobs(batch, reference)
        apart_BT = token_logprobs(output, batch["targets"]) - other_BT
        parts = {"reward": self.beta * apart_BT, "tokens": 1.0, "good": batch["good"].astype(jnp.float32)}
        found = segments(batch, {name: weights_BT * value for name, value in parts.items()})
        reward_BS, is_there_BS = found.sums_BS["reward"], found.sums_BS["tokens"] > 0
        is_own_BS, is_good_BS = is_there_BS & (found.rank_BS == 0), found.sums_BS["good"] > 0
        is_other_BS = is_there_BS & (found.rank_BS == 1)
        total_other = jnp.where(is_other_BS, jax.lax.stop_gradient(reward_BS), 0).sum()
        z = jnp.maximum(total_other / jnp.maximum(is_other_BS.sum(), 1), 0)
        side_BS = jnp.where(is_good_BS, 1.0, -1.0) * (reward_BS - z)
        loss_BS = jnp.where(is_good_BS, self.good_weight, self.bad_weight) * jax.nn.sigmoid(-side_BS)
        over = lambda which_BS, value_BS=1.0: jnp.where(which_BS, value_BS, 0).sum().astype(jnp.float32)
        examples, total = over(is_own_BS), over(is_own_BS, loss_BS)
        sums = {"loss": total, "accuracy": over(is_own_BS, share_won(side_BS)), "reference_point": z * examples}
        if key is None:
            sums |= {"good": over(is_own_BS & is_good_BS), "bad": over(is_own_BS & ~is_good_BS)}
            sums |= {"good_reward": over(is_own_BS & is_good_BS, reward_BS)}
            sums |= {"bad_reward": over(is_own_BS & ~is_good_BS, reward_BS)}
        if key is None and other is not None:
            kl_BT = token_divergences(output, other).p_to_q_BT
            sums |= {"kl": (weights_BT * kl_BT).sum(), "tokens": weights_BT.sum()}
        loss = Loss(total, examples, jax.lax.stop_gradient(sums))
        return routing.with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        sums = {name: float(value) for name, value in loss.metrics.items()}
        of = {"good_reward": sums["good"], "bad_reward": sums["bad"], "kl": sums.get("tokens", 0.0)}
        counts = {name: of.get(name, float(loss.weight)) for name in _MEANINGS if name in sums}
        # Without a good answer there is no mean of their rewards, and no margin.
        means = {name: sums[name] / max(count, 1e-9) for name, count in counts.items() if name not in of or count}
        if {"good_reward", "bad_reward"} <= {*means}:
            means["margin"] = means["good_reward"] - means["bad_reward"]
        return {name: means[name] for name in _MEANINGS if name in means}
