"""Advantages equal their formulas: TRL's for groups, verl's and OpenRLHF's for GAE and the adaptive KL coefficient."""

import numpy as np
import pytest
import torch

from train.align import advantages
from train.align.estimators import kl

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=24)
ALL = np.ones(24, bool)


def test_groups_equal_trl():
    """(reward - mean) / (std + 1e-4) of a group, as TRL's GRPOTrainer computes it with torch.std."""
    r = torch.tensor(REWARDS).reshape(-1, 4)
    wanted = ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten().numpy()
    np.testing.assert_allclose(advantages.of_completions(REWARDS, ALL, 4, "group", "group"), wanted, rtol=1e-12)
    np.testing.assert_allclose(
        advantages.of_completions(REWARDS, ALL, 4, "group", "none"), (r - r.mean(1, keepdim=True)).flatten(), rtol=1e-12
    )
    of_batch = ((r - r.mean(1, keepdim=True)) / (r.std() + 1e-4)).flatten().numpy()
    np.testing.assert_allclose(advantages.of_completions(REWARDS, ALL, 4, "group", "batch"), of_batch, rtol=1e-12)


def test_rloo_leaves_one_out():
    found = advantages.of_completions(REWARDS, ALL, 4, "rloo", "none")
    for i, reward in enumerate(REWARDS):
        others = [REWARDS[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        assert found[i] == pytest.approx(reward - np.mean(others), rel=1e-12)


def test_the_baseline_of_a_batch():
    found = advantages.of_completions(REWARDS, ALL, 1, "batch", "none")
    np.testing.assert_allclose(found, REWARDS - REWARDS.mean(), rtol=1e-12)


@pytest.mark.parametrize("estimator", ["group", "rloo", "batch"])
@pytest.mark.parametrize("scale", advantages.SCALES)
def test_what_does_not_count_changes_nothing(estimator, scale):
    """A completion without a reward has advantage 0, and the others have those that they have without it."""
    counted = RNG.random(24) > 0.3
    counted[:4] = [True, False, False, False]  # of one alone nothing is known
    counted[4:8] = False
    odd = np.where(counted, REWARDS, 1e9)
    found = advantages.of_completions(odd, counted, 4, estimator, scale)
    assert np.isfinite(found).all() and not found[~counted].any()
    if estimator != "batch":
        assert found[0] == 0
    other = advantages.of_completions(np.where(counted, REWARDS, -5.0), counted, 4, estimator, scale)
    np.testing.assert_array_equal(found, other)


def test_equal_rewards_teach_nothing_also_with_rounding():
    """NeMo-RL issue 4161: rewards that differ in their last bits gave advantages of thousands."""
    noise = np.array([0.1 + 0.2, 0.3, 0.3 + 1e-12, 0.3])
    assert np.abs(advantages.of_completions(noise, ALL[:4], 4, "group", "group")).max() < 1e-3
    assert advantages.equal_rewards(noise, ALL[:4], 4).tolist() == [True]
    assert advantages.equal_rewards([0, 0, 1, 0], ALL[:4], 4).tolist() == [False]
    assert advantages.equal_rewards([0, 0, 1, 0], [True, True, False, True], 4).tolist() == [True]


def test_integer_rewards_are_not_truncated():
    found = advantages.of_completions(np.array([1, 0, 0]), ALL[:3], 3, "group", "none")
    np.testing.assert_allclose(found, [2 / 3, -1 / 3, -1 / 3])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_its_definition(gamma, lam):
    """sum_l (gamma lam)^l delta_{t+l}, arXiv:1506.02438, equation 16, with the terminal value 0."""
    sizes = [1, 5, 9]
    rewards, values = ([RNG.normal(size=n) for n in sizes] for _ in range(2))
    found, returns = advantages.gae(rewards, values, gamma, lam)
    for r, v, a, back in zip(rewards, values, found, returns, strict=True):
        delta = r + gamma * np.append(v[1:], 0) - v
        wanted = [sum((gamma * lam) ** k * delta[t + k] for k in range(len(r) - t)) for t in range(len(r))]
        np.testing.assert_allclose(a, wanted, rtol=1e-12)
        np.testing.assert_allclose(back, a + v, rtol=1e-12)
    if lam == 1 and gamma == 1:
        np.testing.assert_allclose(returns[1], np.cumsum(rewards[1][::-1])[::-1], rtol=1e-10)


def test_whitening():
    """Mean 0 and variance 1 over the tokens that count; the variance has n - 1, as in TRL and verl."""
    parts = [RNG.normal(3, 2, size=n) for n in (4, 1, 7)]
    found = advantages.whitened(parts, [True, False, True])
    tokens = np.concatenate([found[0], found[2]])
    assert tokens.mean() == pytest.approx(0, abs=1e-12) and tokens.var(ddof=1) == pytest.approx(1, rel=1e-6)
    assert all(not part.any() for part in advantages.whitened([np.ones(1), np.ones(3)], [True, False]))


@pytest.mark.parametrize(("kl_now", "error"), [(6.0, 0.0), (6.3, 0.05), (60.0, 0.2), (0.0, -0.2)])
def test_the_adaptive_coefficient(kl_now, error):
    wanted = 0.05 * (1 + error * 256 / 1e4)
    assert advantages.adapted(0.05, kl_now, 6.0, 256, 1e4) == pytest.approx(wanted)


def test_estimates_of_the_divergence():
    """Over samples of p, the means of k1 and k3 are KL(p || q); k3 is never negative, and nothing overflows."""
    p, q = (np.log(RNG.dirichlet(np.full(6, 3.0))) for _ in range(2))
    mean = lambda values: float((np.exp(p) * np.asarray(values, np.float64)).sum())
    exact = mean(p - q)
    assert mean(kl("k1", p, q)) == pytest.approx(exact, rel=1e-5)
    assert mean(kl("k3", p, q)) == pytest.approx(exact, rel=1e-5)
    assert (np.asarray(kl("k3", p, q)) >= 0).all()
    np.testing.assert_allclose(kl("k2", p, q), (p - q) ** 2 / 2, rtol=1e-5)
    assert np.isfinite(np.asarray(kl("k3", np.array(-1e4), np.array(0.0))))
