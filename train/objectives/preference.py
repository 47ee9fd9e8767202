"""Direct preference methods: make the better of two answers more likely, without a reward model.

The score of an answer is its implicit reward, beta * log(p / p_reference), summed over its tokens; the reference is the
model that the run began with. Methods without a reference score the answer's probability alone. The loss of a pair is a
function of the difference of the two scores:

    dpo      -log sigmoid(z); label_smoothing e: -(1 - e) log sigmoid(z) - e log sigmoid(-z)    arXiv:2305.18290
    robust   the unbiased form if a fraction e of the labels is flipped                           arXiv:2403.00409
    ipo      (z / beta - 1 / (2 beta))^2                                                          arXiv:2310.12036
    hinge    max(0, 1 - z)                                                                        arXiv:2305.10425
    simpo    dpo without a reference, scores per token, less a target margin                      arXiv:2405.14734
    orpo     -beta log sigmoid(difference of the log-odds per token), beside an SFT loss          arXiv:2403.07691

The answers to a prompt are segments of one row (data/examples/judged/preferences.py). A list of more than two gives
all its pairs (segments.py).

Dims: B rows, T length, S segments of a row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from data.examples import kinds
from model.config import ModelConfig
from train.losses import Loss
from train.objectives import routing
from train.objectives.objective import LOSS, Curve, Headline, HeldOut
from train.objectives.policy_figures import SAMPLED_CURVES, SAMPLED_HEADLINE, SAMPLED_MEANINGS
from train.objectives.referenced import Referenced, reference_logprobs
from train.objectives.segments import over_pairs, segments, share_won
from train.token_logprobs import token_divergences, token_logprobs


class Method(NamedTuple):
    """A row of METHODS."""

    loss: Callable  # (settings, z) -> loss of pairs, of any shape
    reference: bool = True  # whether scores are relative to a reference
    per_token: bool = False  # whether scores are always means over tokens
    odds: bool = False  # whether scores are log-odds, and beta multiplies the loss


def _dpo(s: "Preference", z):
    return -(1 - s.label_smoothing) * log_sigmoid(z) - s.label_smoothing * log_sigmoid(-z)


def _robust(s: "Preference", z):
    kept, flipped = -(1 - s.label_smoothing) * log_sigmoid(z), s.label_smoothing * log_sigmoid(-z)
    return (kept + flipped) / (1 - 2 * s.label_smoothing)


METHODS = {
    "dpo": Method(_dpo),
    "robust": Method(_robust),
    "ipo": Method(lambda s, z: jnp.square(z / s.beta - 1 / (2 * s.beta))),
    "hinge": Method(lambda s, z: jax.nn.relu(1 - z)),
    "simpo": Method(lambda s, z: _dpo(s, z - s.target_margin), reference=False, per_token=True),
    "orpo": Method(lambda s, z: -s.beta * log_sigmoid(z), reference=False, per_token=True, odds=True),
}

# The metrics of evaluations, with explanations that are printed beside them.
_MEANINGS = {
    "loss": "mean over examples",
    "accuracy": "pairs whose better answer has the larger score; equal scores count half",
    "margin": "mean score of better answers minus that of worse ones",
    "chosen_reward": "mean score of better answers",
    "rejected_reward": "mean score of worse answers",
    "sft_loss": "nats per token of better answers",
    "kl": "KL divergence to the reference, nats per token of the answers",
}


@dataclasses.dataclass(frozen=True)
class Preference(Referenced):
    """The loss of a method, a mean over examples.

    Args:
      method: a name of METHODS.
      beta: a larger one keeps the model nearer to the reference.
      label_smoothing: the fraction of labels that are taken to be flipped, for dpo, robust and simpo.
      target_margin: the difference of scores that simpo wants (gamma in its paper).
      per_token: divide scores by the answers' lengths, which removes the preference for long answers. Sums are the
        published form of dpo, robust and hinge. For ipo, TRL divides; its comment says that the paper's results are of
        that form. simpo and orpo divide always.
      sft: weight of the negative log-likelihood per token of the better answer, which is added (arXiv:2404.19733,
        equation 1; 1 in orpo's paper).
      balance_loss, router_z_loss: see routing.with_routers.
      precompute: see Referenced.
    """

    method: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    target_margin: float = 0.0
    per_token: bool = False
    sft: float = 0.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0

    config: ClassVar = "configs/dpo.py"
    predicts_tokens: ClassVar = False
    rollouts: ClassVar = "pairs"
    heading: ClassVar = "held-out preferences, not used in training:"
    meanings: ClassVar = SAMPLED_MEANINGS | _MEANINGS
    headlines: ClassVar = (
        Headline("accuracy", "accuracy of implicit rewards", "on held-out preferences", {0.5: "chance"}),
        SAMPLED_HEADLINE,
    )
    curves: ClassVar = (
        LOSS,
        Curve(("accuracy",), "Accuracy", baselines={0.5: "chance"}),
        Curve(("margin",), "Margin"),
        Curve(
            ("chosen_reward", "rejected_reward"),
            "Implicit rewards",
            "mean score of better and of worse answers; often both fall, because only their difference is learned",
        ),
        Curve(("kl",), "KL to the reference"),
        Curve(
            ("sft_loss",), "Likelihood of better answers", "nats per token; a rise says that they become less likely"
        ),
        *SAMPLED_CURVES,
    )
    ranges: ClassVar = {
        "beta": "float (0, inf)",
        "label_smoothing": "float [0, 1)",
        "target_margin": "float [0, inf)",
        "sft": "float [0, inf)",
    } | routing.RANGES
    lower_is_better: ClassVar = {
        "win_rate": False,
        "margin": False,
        "chosen_reward": False,
        "rejected_reward": True,
        "kl": True,
    }

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; choose from {', '.join(METHODS)}")
        if self.label_smoothing and self.method not in ("dpo", "robust", "simpo"):
            raise ValueError(f"label_smoothing has no effect in method {self.method!r}; set it to 0")
        if self.method == "robust" and not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; method 'robust' needs less than 0.5")
        if self.per_token and METHODS[self.method].per_token:
            raise ValueError(
                f"per_token has no effect in method {self.method!r}, which always divides; set it to False"
            )
        if self.method == "orpo" and not self.sft:
            raise ValueError("sft is 0, but method 'orpo' adds its term to an SFT loss; set sft, to 1 as in its paper")
        if self.precompute and not METHODS[self.method].reference:
            raise ValueError(
                f"precompute has no effect in method {self.method!r}, which has no reference; set it to False"
            )
        if self.target_margin and self.method != "simpo":
            raise ValueError(f"target_margin has no effect in method {self.method!r}; set it to 0")

    @property
    def compares(self) -> bool:
        return METHODS[self.method].reference

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        if (model.architecture, model.head) != ("decoder", "language_model"):
            raise ValueError(
                f"config.model is of architecture {model.architecture!r} with head {model.head!r}; "
                "config.objective.name 'preference' needs a decoder with head 'language_model'"
            )
        found = {kinds.kind_of(spec) for spec, _ in kinds.sources(data)}
        self.check_rows(data, found == {"prompts"})
        if found != {"prompts"} and (others := sorted(found - {"preferences"})):
            raise ValueError(
                f"config.objective.name 'preference' can learn only from preferences, or from its own answers to "
                f"prompts, but config.data also has {', '.join(others)}; remove these, or set config.data.format to "
                "'preferences' if config.data.path is of preferences"
            )

    def __call__(self, model, batch, key, *, reference=None) -> Loss:
        rows, weights_BT = [batch[name] for name in ("tokens", "segment_ids", "positions")], batch["weights"]
        hidden = model(*rows, key=key)
        output = model.output(hidden.x_BTD)
        own_BT = token_logprobs(output, batch["targets"])
        sums_BT = {"own": weights_BT * own_BT, "tokens": weights_BT}
        other = None
        if self.compares:
            other, other_BT = reference_logprobs(batch, reference)
            sums_BT["apart"] = weights_BT * (own_BT - other_BT)
        found = segments(batch, sums_BT)
        tokens_BS = found.sums_BS["tokens"]
        per_token_BS = jax.tree.map(lambda v_BS: v_BS / jnp.maximum(tokens_BS, 1), found.sums_BS)
        scores_BS = self._scores(found.sums_BS, per_token_BS)
        sums = over_pairs(self._pairs, found, tokens_BS > 0, scores_BS, -per_token_BS["own"])
        examples, total = sums.pop("pairs"), sums["loss"] + self.sft * sums["sft_loss"]
        if key is None and other is not None:
            kl_BT = token_divergences(output, other).p_to_q_BT
            sums |= {"kl": (weights_BT * kl_BT).sum(), "tokens": weights_BT.sum()}
        loss = Loss(total, examples, jax.lax.stop_gradient(sums | {"loss": total}))
        return routing.with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def _scores(self, sums_BS, means_BS):
        method = METHODS[self.method]
        values_BS = means_BS if self.per_token or method.per_token else sums_BS
        if method.odds:  # log(p / (1 - p)) of p, the geometric mean of the answer's token probabilities
            logp_BS = jnp.minimum(values_BS["own"], -1e-6)  # of an absent segment it is 0, where the odds are infinite
            return logp_BS - jnp.log(-jnp.expm1(logp_BS))
        return self.beta * values_BS["apart" if method.reference else "own"]

    def _pairs(self, scores, nll) -> dict:
        (better, worse), (better_nll, _) = scores, nll
        z = better - worse
        return {
            "loss": METHODS[self.method].loss(self, z),
            "accuracy": share_won(z),
            "margin": z,
            "chosen_reward": better,
            "rejected_reward": worse,
            "sft_loss": better_nll,
        }

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        sums = {name: float(value) for name, value in loss.metrics.items() if name in _MEANINGS}
        weight = dict.fromkeys(sums, float(loss.weight)) | {"kl": float(loss.metrics.get("tokens", 0.0))}
        return {name: sums[name] / max(weight[name], 1e-9) for name in _MEANINGS if name in sums}
