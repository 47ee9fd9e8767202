"""Makes a round of rollouts: prompts -> completions -> rewards -> log-probabilities -> advantages.

Dims: N completions, G completions of a prompt, L tokens of a completion.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from train.align import advantages
from train.align.estimators import kl
from train.align.layout import Completion
from train.align.measure import store

TRUNCATED = ("keep", "mask", "penalize")


class Settings(NamedTuple):
    """The block config.rollouts."""

    group: int  # G
    epochs: int  # passes over a round
    minibatches: int  # steps in each pass
    max_new_tokens: int
    temperature: float
    resample: int  # up to so many times, further prompts replace those whose completions all have the same reward
    truncated: str  # what happens to completions that reach max_new_tokens: a name of TRUNCATED
    truncated_penalty: float  # what is taken off their reward, for 'penalize'
    text_rows: int  # rows of text in each batch, for an objective that learns from text too
    rows: int  # completions that are sampled at a time; 0: all of a round


class Prompt(NamedTuple):
    ids: np.ndarray  # int32
    text: str  # for people and for rewards
    record: Mapping[str, Any]  # of the kind `prompts` (data/examples/judged/prompts.py)


class Rewards(NamedTuple):
    """The rewards of some completions."""

    total: np.ndarray  # float64 [N]
    counted: np.ndarray  # bool [N]: False where a reward failed and the completion is to be left out
    parts: dict[str, np.ndarray]  # float64 [N] by the name of the reward
    failed: int = 0  # calls that failed
    notes: tuple[str, ...] = ()  # lines about them


class Sampled(NamedTuple):
    answer: np.ndarray  # int32 [L]
    logprobs: np.ndarray  # float32 [L], by the sampler
    finished: bool  # an end token ended it
    text: str


class Tools(NamedTuple):
    """The functions that a round needs."""

    sample: Callable  # (model, [ids of a prompt], random key) -> [Sampled]
    rewards: Callable  # ([Prompt], [text of a completion]) -> Rewards
    measure: Callable | None  # (state, host batch) -> {name: float32 [R, T]} (measure.py); for advantages


class Rounds:
    """Makes rounds for an objective.

    Args:
      prompts: all prompts.
      objective: what learns from the round.
      settings: config.rollouts.
      seq_len, unit: as in layout.rows_of.
      tools: see Tools.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        objective: Any,
        settings: Settings,
        seq_len: int,
        unit: int,
        tools: Tools,
    ):
        self._prompts, self._objective, self._settings = prompts, objective, settings
        self._seq_len, self._unit, self._tools = seq_len, unit, tools
        self._notes: list[str] = []

    def notes(self) -> list[str]:
        """Returns lines about rewards that failed since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def make(
        self, state, draw: Callable[[int], list[int]], keys: Callable[[int], jax.Array], size: int, coefficient: float
    ) -> tuple[list[Completion], dict[str, float]]:
        """Returns `size` completions, neighbours of one prompt together, and numbers about the round.

        Args:
          state: the state of training, whose model samples.
          draw: number of prompts -> their numbers.
          keys: attempt -> random key.
          size: N.
          coefficient: of the KL in the reward.
        """
        settings, group = self._settings, self._settings.group
        kept: list[Completion] = []
        spare: list[Completion] = []
        everything: list[Completion] = []
        found: list[Rewards] = []
        for attempt in range(1 + settings.resample):
            made, rewards = self._answered(state.model, draw((size - len(kept)) // group), keys(attempt))
            equal = advantages.equal_rewards([one.reward for one in made], [one.counted for one in made], group)
            for place, same in enumerate(equal):
                (spare if same and settings.resample else kept).extend(made[place * group : (place + 1) * group])
            everything, found = everything + made, [*found, rewards]
            if len(kept) == size:
                break
        chosen = (kept + spare)[:size]  # groups that teach nothing fill up what is missing
        figures = _figures(everything, found, group)
        if self._objective.rollouts == "advantages":
            self._measure(state, chosen)
            figures |= self._judge(chosen, coefficient)
        return chosen, figures

    def _answered(self, model, numbers: Sequence[int], key: jax.Array) -> tuple[list[Completion], Rewards]:
        """Returns completions of these prompts with their rewards."""
        asked = [number for number in numbers for _ in range(self._settings.group)]
        made = []
        sampled = self._tools.sample(model, [self._prompts[number].ids for number in asked], key)
        for number, one in zip(asked, sampled, strict=True):
            completion = Completion(number, self._prompts[number].ids, one.answer, one.finished, one.text)
            completion.values["sampled_logprobs"] = one.logprobs
            made.append(completion)
        rewards = self._tools.rewards([self._prompts[number] for number in asked], [one.text for one in made])
        self._notes += rewards.notes
        truncated = self._settings.truncated
        for one, reward, counted in zip(made, rewards.total, rewards.counted, strict=True):
            lost = not one.finished
            one.reward = float(reward) - self._settings.truncated_penalty * (lost and truncated == "penalize")
            one.counted = bool(counted) and np.isfinite(one.reward) and not (lost and truncated == "mask")
        return made, rewards

    def _measure(self, state, completions: Sequence[Completion]) -> None:
        """Adds the log-probabilities and values that the objective needs to the completions."""
        if not self._objective.measures(self._settings.epochs * self._settings.minibatches):
            return
        assert self._tools.measure is not None
        share = max(len(completions) // self._settings.minibatches, 1)  # about as many rows as in a step of training
        store(self._tools.measure, state, completions, share, self._seq_len, self._unit)

    def _judge(self, completions: Sequence[Completion], coefficient: float) -> dict[str, float]:
        """Adds the advantages, and with a critic the returns, to the completions."""
        objective, counted = self._objective, np.array([one.counted for one in completions])
        figures = {}
        penalties = [np.zeros(len(one.answer)) for one in completions]
        if "reference_logprobs" in completions[0].values:
            # With one update, the sampler's numbers stand for the old ones, from which they differ by rounding.
            own = "old_logprobs" if "old_logprobs" in completions[0].values else "sampled_logprobs"
            read = lambda one, name: one.values[name].astype(np.float64)
            apart = lambda name, one: kl(name, read(one, own), read(one, "reference_logprobs"))
            figures["kl"] = float(np.mean([apart("k1", one).sum() for one in completions]))
            if objective.kl_in == "reward":
                penalties = [coefficient * apart(objective.kl_estimator, one) for one in completions]
        if objective.advantages == "gae":
            rewards = [-penalty_L for penalty_L in penalties]
            for one, reward_L in zip(completions, rewards, strict=True):
                reward_L[-1] += one.reward if one.counted else 0.0
            values = [one.values["old_values"] for one in completions]
            found, returns = advantages.gae(rewards, values, objective.gamma, objective.lam)
            for one, return_L in zip(completions, returns, strict=True):
                one.values["returns"] = return_L.astype(np.float32)
            figures["explained_variance"] = _explained(values, returns, counted)
        else:
            totals = [one.reward - penalty_L.sum() for one, penalty_L in zip(completions, penalties, strict=True)]
            by_completion = advantages.of_completions(
                totals, counted, self._settings.group, objective.advantages, objective.scale
            )
            found = [np.full(len(one.answer), value) for one, value in zip(completions, by_completion, strict=True)]
        if objective.whiten:
            found = advantages.whitened(found, counted)
        for one, advantage_L in zip(completions, found, strict=True):
            one.values["advantages"] = advantage_L.astype(np.float32)
        return figures


def _figures(made: Sequence[Completion], found: Sequence[Rewards], group: int) -> dict[str, float]:
    """Returns the means over all completions that were sampled."""
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
    counted = [one for one in made if one.counted]
    rewards = np.array([one.reward for one in counted])
    figures = {"reward": mean(rewards), "reward_deviation": float(rewards.std()) if len(rewards) else float("nan")}
    for name in found[0].parts:
        figures[f"reward/{name}"] = mean(np.concatenate([one.parts[name] for one in found]))
    if group > 1:
        equal = advantages.equal_rewards([one.reward for one in made], [one.counted for one in made], group)
        figures["equal_groups"] = mean(equal)
    return figures | {
        "length": mean([len(one.answer) for one in made]),
        "truncated": mean([not one.finished for one in made]),
        "left_out": mean([not one.counted for one in made]),
        "failed_rewards": float(sum(one.failed for one in found)),
    }


def _explained(values: Sequence[np.ndarray], returns: Sequence[np.ndarray], counted: np.ndarray) -> float:
    """Returns which share of the variance of the returns the critic's values explain; 1: all, 0: none."""
    chosen = [(v_L, r_L) for v_L, r_L, is_counted in zip(values, returns, counted, strict=True) if is_counted]
    if not chosen:
        return float("nan")
    value, wanted = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    return float(1 - np.var(wanted - value) / np.var(wanted)) if np.var(wanted) else float("nan")
