"""Advantages: how much better each completion was than expected, from the rewards of a round of rollouts.

    gae     per token, with a critic's values (generalized advantage estimation, arXiv:1506.02438, equation 16)
    group   reward minus the mean of all completions of the same prompt (GRPO, arXiv:2402.03300)
    rloo    reward minus the mean of the other completions of the same prompt (arXiv:2402.14740)
    batch   reward minus the mean of the round (REINFORCE with a baseline)

Everything here runs on the host, in float64. N completions come in groups of G neighbours, which share a prompt.

Dims: N completions, G completions of a prompt, L tokens of a completion.
"""

from collections.abc import Sequence

import numpy as np

ESTIMATORS = ("gae", "group", "rloo", "batch")
SCALES = ("none", "group", "batch")  # what advantages are divided by: the standard deviation of these rewards
_EPSILON = 1e-4  # added to a standard deviation, as in TRL


def of_completions(rewards_N, counted_N, group: int, estimator: str, scale: str) -> np.ndarray:
    """Returns the advantage of each completion, float64 [N]; 0 of those that are not counted.

    Args:
      rewards_N: the reward of each completion, with the penalty for its distance to the reference.
      counted_N: bool; the others have no reward and are left out of all means.
      group: G.
      estimator: 'group', 'rloo' or 'batch'.
      scale: a name of SCALES. The standard deviation has N - 1 in its denominator. Rewards that differ by rounding
        alone are not scaled, because that would turn noise into advantages of thousands.
    """
    rewards_N, counted_N = np.asarray(rewards_N, np.float64), np.asarray(counted_N, bool)
    found, whole = np.zeros(len(rewards_N)), np.arange(len(rewards_N))
    groups = np.split(whole, len(whole) // group)
    for part in [whole] if estimator == "batch" else groups:
        mine = part[counted_N[part]]
        if len(mine):
            found[mine] = rewards_N[mine] - rewards_N[mine].mean()
            if estimator == "rloo":  # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1); of one alone nothing is known
                found[mine] *= len(mine) / max(len(mine) - 1, 1)
    for part in {"none": [], "group": groups, "batch": [whole]}[scale]:
        mine = part[counted_N[part]]
        found[mine] /= _deviation(rewards_N[mine])
    return found


def _deviation(rewards: np.ndarray) -> float:
    """Returns the standard deviation of rewards plus a small number; infinity if they are equal up to rounding."""
    if len(rewards) < 2:
        return np.inf
    deviation = rewards.std(ddof=1)
    if deviation <= 1e-6 * max(1.0, np.abs(rewards).max()):
        return np.inf
    return float(deviation + _EPSILON)


def equal_rewards(rewards_N, counted_N, group: int) -> np.ndarray:
    """Returns which groups teach nothing, because their rewards are equal up to rounding: bool [N / G]."""
    rows = zip(np.reshape(rewards_N, (-1, group)), np.reshape(counted_N, (-1, group)), strict=True)
    return np.array([np.isinf(_deviation(np.asarray(row, np.float64)[counted])) for row, counted in rows])


def gae(
    rewards: Sequence[np.ndarray], values: Sequence[np.ndarray], gamma: float, lam: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns (advantages, returns) of each token, float64 [L] of each completion; returns = advantages + values.

    The state after the last token is terminal, whether the completion ended by itself or was cut.

    Args:
      rewards: the reward of each token, [L]; that of the whole completion is at its last token.
      values: the critic's value of the state before each token, [L].
      gamma: discount of later rewards.
      lam: 0 trusts the critic after one token, 1 uses the rewards of the whole completion.
    """
    advantages = []
    for reward_L, value_L in zip(rewards, values, strict=True):
        after_L = np.append(value_L[1:], 0.0)
        delta_L = np.asarray(reward_L, np.float64) + gamma * after_L - value_L
        found_L, later = np.zeros(len(delta_L)), 0.0
        for t in reversed(range(len(delta_L))):
            found_L[t] = later = delta_L[t] + gamma * lam * later
        advantages.append(found_L)
    return advantages, [a_L + np.asarray(v_L, np.float64) for a_L, v_L in zip(advantages, values, strict=True)]


def whitened(advantages: Sequence[np.ndarray], counted_N) -> list[np.ndarray]:
    """Returns advantages with mean 0 and variance 1 over all tokens of the counted completions.

    The variance has n - 1 in its denominator (TRL, verl).
    """
    counted = [a_L for a_L, is_counted in zip(advantages, counted_N, strict=True) if is_counted]
    tokens = np.concatenate([np.zeros(0), *counted])
    if len(tokens) < 2:
        return [np.zeros_like(a_L) for a_L in advantages]
    mean, scale = tokens.mean(), 1 / np.sqrt(tokens.var(ddof=1) + 1e-8)
    return [(a_L - mean) * scale for a_L in advantages]


def adapted(coefficient: float, kl: float, target: float, completions: int, horizon: float) -> float:
    """Returns the next coefficient of the KL penalty, which moves the KL towards its target (arXiv:1909.08593, 2.2).

    Args:
      coefficient: the present one.
      kl: the mean KL divergence of a completion from the reference, in nats.
      target: wanted.
      completions: those that `kl` was measured on.
      horizon: completions over which the coefficient changes by up to a fifth.
    """
    error = np.clip(kl / target - 1, -0.2, 0.2)
    return float(coefficient * (1 + error * completions / horizon))
