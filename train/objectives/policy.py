"""Policy gradients: make completions that earned more reward than expected more likely.

The batch holds completions that the model sampled, with their advantages (train/align/). The loss of a token is

    max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))        PPO, arXiv:1707.06347, equation 7

with the ratio r between its probability now and when it was sampled, plus terms for the distance to the reference, the
entropy, the critic's values and, in rows of text, the language-modelling loss (PPO-ptx, arXiv:2203.02155, equation 2).
The published methods differ in these settings (configs/ppo.py, rloo.py, reinforce.py, grpo.py):

    method             advantages  scale  ratio     average    further
    PPO                gae         -      token     tokens     whiten, critic, KL k1 in the reward
    RLOO               rloo        none   sequence  sequences  KL k1 in the reward                     arXiv:2402.14740
    REINFORCE          batch       none   token     constant   no clip
    GRPO               group       group  token     sequences  KL k3 in the loss                       arXiv:2402.03300
    Dr. GRPO           group       none   token     constant                                           arXiv:2503.20783
    DAPO               group       group  token     tokens     clip_high 0.28, dynamic sampling        arXiv:2503.14476
    GSPO               group       group  mean      sequences  clip 3e-4 and 4e-4                      arXiv:2507.18071

Log-probabilities are those at the sampling temperature. Sampling cuts no tokens off (top-k, top-p), because the ratio
would then be biased.

Dims: B rows, T length.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from data.examples import kinds
from model.config import ModelConfig
from train.align import advantages
from train.align.estimators import ESTIMATORS, LARGEST, kl
from train.losses import Loss
from train.objectives import routing
from train.objectives.objective import Companion, HeldOut, Objective
from train.objectives.policy_figures import CURVES, MEANINGS, SAMPLED_HEADLINE
from train.objectives.segments import segments, spread
from train.token_logprobs import token_logprobs, token_scores

RATIOS = ("token", "sequence", "mean")  # of each token; of all tokens of a completion, multiplied; their geometric mean
AVERAGES = ("tokens", "sequences", "constant")
CRITICS = ("", "head", "model")


@dataclasses.dataclass(frozen=True)
class Policy(Objective):
    """The loss of a policy over sampled completions.

    Args:
      advantages: a name of advantages.ESTIMATORS.
      scale: of advantages.SCALES.
      whiten: scale advantages to mean 0 and variance 1 over the tokens of a round.
      gamma, lam: of 'gae'.
      ratio: of RATIOS.
      clip_low, clip_high: how far the ratio counts below and above 1; both 0: no clipping.
      average: 'tokens': the mean over all tokens; 'sequences': the mean over completions of the mean over their tokens;
        'constant': the mean over completions of the sum over their tokens, divided by `constant`.
      constant: see above; 0: config.rollouts.max_new_tokens, the longest that a completion can be.
      kl: coefficient of the distance to the reference; 0: there is no reference.
      kl_in: 'reward' or 'loss'. In the reward, every token pays for itself with 'gae', and the completion for all of
        its tokens otherwise.
      kl_estimator: of estimators.ESTIMATORS.
      kl_target: if above 0, the coefficient in the reward is adapted so that the KL of a completion, in nats, comes
        near this.
      kl_horizon: completions over which the coefficient may change by a fifth.
      entropy: coefficient of the mean entropy, which is made larger.
      critic: '', 'head' (a linear layer on the policy's hidden states) or 'model' (a model of its own).
      value: coefficient of the critic's loss.
      value_clip: how far a value may move from that before the update; 0: no limit.
      text: coefficient of the loss on rows of text, if the data have sources of text.
      balance_loss, router_z_loss: see routing.with_routers.
    """

    advantages: str = "group"
    scale: str = "group"
    whiten: bool = False
    gamma: float = 1.0
    lam: float = 0.95
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    average: str = "tokens"
    constant: float = 0.0
    kl: float = 0.0
    kl_in: str = "loss"
    kl_estimator: str = "k3"
    kl_target: float = 0.0
    kl_horizon: float = 10000.0
    entropy: float = 0.0
    critic: str = ""
    value: float = 0.1
    value_clip: float = 0.2
    text: float = 0.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0
    temperature: float = dataclasses.field(default=1.0, metadata={"from_data": True})  # of sampling
    vocab_size: int = dataclasses.field(default=0, metadata={"from_data": True})  # of the tokenizer

    config: ClassVar = "configs/grpo.py"
    predicts_tokens: ClassVar = False
    rollouts: ClassVar = "advantages"
    progress: ClassVar = ("reward", "kl", "length")
    heading: ClassVar = "answers to held-out prompts, sampled:"
    meanings: ClassVar = MEANINGS
    headlines: ClassVar = (SAMPLED_HEADLINE,)
    curves: ClassVar = CURVES
    lower_is_better: ClassVar = {"win_rate": False, "kl": True, "truncated": True}
    ranges: ClassVar = {
        "gamma": "float [0, 1]",
        "lam": "float [0, 1]",
        "clip_low": "float [0, 1]",
        "clip_high": "float [0, inf)",
        "constant": "float [0, inf)",
        "kl": "float [0, inf)",
        "kl_target": "float [0, inf)",
        "kl_horizon": "float [1, inf)",
        "entropy": "float [0, inf)",
        "value": "float [0, inf)",
        "value_clip": "float [0, inf)",
        "text": "float [0, inf)",
    } | routing.RANGES

    def __post_init__(self):
        choices = {
            "advantages": advantages.ESTIMATORS,
            "scale": advantages.SCALES,
            "ratio": RATIOS,
            "average": AVERAGES,
            "kl_in": ("reward", "loss"),
            "kl_estimator": ESTIMATORS,
            "critic": CRITICS,
        }
        for field, known in choices.items():
            if getattr(self, field) not in known:
                names = ", ".join(name or "''" for name in known)
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose from {names}")
        gae = self.advantages == "gae"
        if gae != bool(self.critic):
            raise ValueError(
                f"critic is {self.critic!r}, but advantages {self.advantages!r} "
                + ("need one: 'head' or 'model'" if gae else "read no values; set it to ''")
            )
        if gae and self.scale != "none":
            raise ValueError("scale has no effect on advantages 'gae'; set it to 'none' (whiten scales them)")
        if self.kl_in == "reward" and self.kl_estimator == "k3_ratio":
            raise ValueError("kl_estimator 'k3_ratio' is for a KL in the loss; choose another one for the reward")
        if self.kl_target and not (self.kl and self.kl_in == "reward"):
            raise ValueError("kl_target adapts the coefficient of a KL in the reward; set kl above 0 and kl_in=reward")
        if self.constant and self.average != "constant":
            raise ValueError(f"constant has no effect with average {self.average!r}; set it to 0")

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (Companion("reference", "init_from"),) if self.kl else ()

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        if (model.architecture, model.head) != ("decoder", "language_model"):
            raise ValueError(
                f"config.model is of architecture {model.architecture!r} with head {model.head!r}; "
                "config.objective.name 'policy' needs a decoder with head 'language_model'"
            )
        found = {kinds.kind_of(spec) for spec, weight in kinds.sources(data) if weight}
        if others := sorted(found - {"prompts", *[kinds.TEXT] * (self.text > 0)}):
            more = "; for rows of text also set config.objective.text above 0" if kinds.TEXT in others else ""
            raise ValueError(
                f"config.objective.name 'policy' learns from answers to prompts, but config.data also has "
                f"{', '.join(others)}; remove these, or set config.data.format to 'prompts' if config.data.path is of "
                f"prompts{more}"
            )
        if "prompts" not in found:
            raise ValueError("config.data has no prompts; set config.data.path to a file of them (data/README.md)")
        if self.text and kinds.TEXT not in found:
            raise ValueError("config.objective.text is above 0, but config.data.sources has no text; add some")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        default = Policy()
        for fields, is_read, why in (
            (
                ("gamma", "lam", "value", "value_clip"),
                self.critic,
                f"config.objective.advantages is {self.advantages!r}",
            ),
            (("kl_in", "kl_estimator"), self.kl, "config.objective.kl is 0"),
            (("kl_horizon",), self.kl_target, "config.objective.kl_target is 0"),
        ):
            yield from ((f, why) for f in fields if not is_read and getattr(self, f) != getattr(default, f))

    def sampling(self, temperature: float, max_new_tokens: int, vocab_size: int) -> "Policy":
        constant = self.constant or (float(max_new_tokens) if self.average == "constant" else 0.0)
        return dataclasses.replace(self, temperature=temperature, constant=constant, vocab_size=vocab_size)

    def measures(self, steps: int) -> tuple[str, ...]:
        """Returns the channels of a batch that are measured before the updates of a round; `steps`: their number.

        With one update, the old log-probabilities are those of the update itself.
        """
        old = steps > 1 or (self.kl > 0 and self.kl_in == "reward")
        wanted = {"old_logprobs": old, "reference_logprobs": self.kl > 0, "old_values": bool(self.critic)}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def shares(self, length: int) -> tuple[float, float]:
        """Returns what each token of a completion counts: (in the loss, in the weight that the loss is divided by)."""
        if self.average == "tokens":
            return 1.0, 1.0
        return (1 / length if self.average == "sequences" else 1 / self.constant), 1 / length

    def __call__(self, model, batch, key, *, reference=None, critic=None) -> Loss:
        """Returns the loss; the batch has the channels of train/align/layout.py. `reference` was read before."""
        rows, mask_BT = [batch[name] for name in ("tokens", "segment_ids", "positions")], batch["weights"]
        hidden = model(*rows, key=key)
        output = model.output(hidden.x_BTD)
        scores = self.scores(output, batch["targets"])
        share_BT, count_BT = mask_BT * batch["shares"], mask_BT * batch["counts"]
        old_BT = batch.get("old_logprobs", jax.lax.stop_gradient(scores.logprob_BT))
        ratio_BT = self._ratio(batch, mask_BT, scores.logprob_BT - old_BT)
        advantage_BT, low, high = batch["advantages"], 1 - self.clip_low, 1 + self.clip_high
        loss_BT = plain_BT = -advantage_BT * ratio_BT
        if self.clip_low or self.clip_high:
            loss_BT = jnp.maximum(plain_BT, -advantage_BT * jnp.clip(ratio_BT, low, high))
        sums = {"policy_loss": share_BT * loss_BT}
        total = sums["policy_loss"].sum()
        measured = {
            "entropy": scores.entropy_BT,
            "ratio": ratio_BT,
            "clip_fraction": (loss_BT > plain_BT).astype(jnp.float32),
            "sampler_gap": jnp.abs(old_BT - batch["sampled_logprobs"]),
        }
        if "reference_logprobs" in batch:
            kl_BT = kl(self.kl_estimator, scores.logprob_BT, batch["reference_logprobs"], ratio_BT)
            total += self.kl * (share_BT * kl_BT).sum()
            measured["kl_loss"] = kl_BT
        if self.entropy:
            total -= self.entropy * (share_BT * scores.entropy_BT).sum()
        sums |= {name: count_BT * value_BT for name, value_BT in measured.items()}
        if critic is not None:
            sums["value_loss"] = count_BT * self._value_loss(self.values(hidden, critic, rows, key), batch)
            total += self.value * sums["value_loss"].sum()
        if self.text:
            sums["text_loss"] = -batch["text_weights"] * token_logprobs(output, batch["targets"])
            total += self.text * sums["text_loss"].sum()
        metrics = {name: value_BT.sum() for name, value_BT in sums.items()} | {"loss": total}
        loss = Loss(total, count_BT.sum(), jax.lax.stop_gradient(metrics))
        return routing.with_routers(loss, hidden.router, self.balance_loss, self.router_z_loss)

    def scores(self, output, targets_BT):
        """Returns log-probabilities and entropies of the distribution that is sampled from."""
        return token_scores(output, targets_BT, self.temperature, self.vocab_size)

    def _ratio(self, batch, mask_BT, apart_BT):
        """Returns p / p_sampled of each token, or of its completion, from the differences of log-probabilities."""
        if self.ratio != "token":
            found = segments(batch, {"apart": mask_BT * apart_BT, "tokens": mask_BT})
            apart_BS = found.sums_BS["apart"]
            if self.ratio == "mean":
                apart_BS = apart_BS / jnp.maximum(found.sums_BS["tokens"], 1)
            apart_BT = spread(batch, apart_BS)
        return jnp.exp(jnp.clip(apart_BT, -LARGEST, LARGEST))

    def values(self, hidden, critic, rows, key=None):
        """Returns the critic's value of the state after each token, float32 [B, T]."""
        x_BTD = hidden.x_BTD if self.critic == "head" else critic(*rows, key=key).x_BTD
        return critic.classes(x_BTD)[..., 0].astype(jnp.float32)

    def _value_loss(self, value_BT, batch):
        old_BT, return_BT = batch["old_values"], batch["returns"]
        loss_BT = jnp.square(value_BT - return_BT)
        if self.value_clip:
            near_BT = jnp.clip(value_BT, old_BT - self.value_clip, old_BT + self.value_clip)
            loss_BT = jnp.maximum(loss_BT, jnp.square(near_BT - return_BT))
        return loss_BT / 2

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        return {name: float(value) / max(float(loss.weight), 1e-9) for name, value in loss.metrics.items()}
