"""Rewards against KL: the law's constants are found, and it is fitted only where it is determined."""

import numpy as np
import pytest
from scipy import optimize

from tests.train.report.pages import figures, key, report, sections
from train.record import metrics
from train.report.over_optimization import fit

KL = np.linspace(0, 12, 13)


def law(kl, offset, alpha, beta):
    d = np.sqrt(kl)
    return offset + d * (alpha - beta * np.log(np.maximum(d, 1e-12)))


def test_the_constants_are_found():
    found = fit(KL, law(KL, 0.3, 1.39, 0.51))
    np.testing.assert_allclose(found, (0.3, 1.39, 0.51, 1), atol=1e-9)
    highest = optimize.minimize_scalar(lambda kl: -law(kl, 0.3, 1.39, 0.51), bounds=(1, 90), method="bounded").x
    assert found.peak() == pytest.approx(highest, rel=1e-4)
    np.testing.assert_allclose(found(np.sqrt(KL)), law(KL, 0.3, 1.39, 0.51), atol=1e-9)


def test_noise_as_by_scipy():
    reward = law(KL, 0.3, 1.39, 0.51) + np.random.default_rng(0).normal(0, 0.1, KL.size)
    found = fit(KL, reward)
    (alpha, beta), _ = optimize.curve_fit(lambda kl, alpha, beta: law(kl, reward[0], alpha, beta), KL[1:], reward[1:])
    np.testing.assert_allclose(found[:3], (reward[0], alpha, beta), rtol=1e-5)
    error = reward[1:] - law(KL[1:], reward[0], alpha, beta)
    assert found.r2 == pytest.approx(1 - error.var(ddof=0) / reward[1:].var() - error.mean() ** 2 / reward[1:].var())
    assert 0.8 < found.r2 < 0.999


def test_a_reward_that_rises_forever_has_no_peak():
    assert fit(KL, law(KL, 0, 1, -0.1)).peak() is None and fit(KL, law(KL, 0, 1, 1e-9)).peak() is None


@pytest.mark.parametrize(
    ("kl", "why"),
    [
        (KL[:5], "few"),
        (KL + 2, "no evaluation at a KL of 0"),
        (np.zeros(9), "no distance"),
        (np.array([0.0, *[4.0] * 8]), "one distance"),
        (np.full(9, np.nan), "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_fit_without_a_basis(kl, why):
    assert fit(kl, law(np.maximum(kl, 0), 0, 1, 0.5)) is None


def test_estimates_below_zero_and_missing_values_are_left_out():
    kl = np.array([-1e-3, *KL[1:], np.nan, 5.0])
    reward = np.array([0.3, *law(KL[1:], 0.3, 1, 0.4), 1.0, np.nan])
    np.testing.assert_allclose(fit(kl, reward)[:3], (0.3, 1, 0.4), atol=1e-9)


def written(workdir, steps, **rewards):
    writer = metrics.Writer(workdir)
    for step in range(steps):
        values = {name: one(KL[step]) for name, one in rewards.items()} | {"kl": KL[step], "loss": 1.0}
        writer.write(step, {f"validation/{name}": value for name, value in values.items()})
    writer.close()
    return report(workdir)


def test_the_plot(tmp_path):
    page = written(tmp_path, 13, reward=lambda kl: law(kl, 0, 1, 0.2), gold=lambda kl: law(kl, 0.25, 1.5, 0.75))
    plot = figures(page)["Reward against KL to the reference"]
    assert key(plot) == ["reward", "gold"] and len(plot.all("svg")) == 2
    gold = next(one.text for one in plot.all("p") if one.text.startswith("gold"))
    assert all(text in gold for text in ("R(0) = 0.25", "α = 1.5", "β = 0.75", "R² = 1.000"))
    assert f"KL of {np.exp(2):.3g}" in gold
    # The trained reward rises on: where it would be highest is far outside of what was measured, at e^8.
    assert "highest" not in next(one.text for one in plot.all("p") if one.text.startswith("reward"))


def test_few_evaluations_have_a_plot_without_a_law(tmp_path):
    plot = figures(written(tmp_path, 4, reward=lambda kl: kl))["Reward against KL to the reference"]
    assert key(plot) == ["reward"] and "R²" not in plot.text


def test_a_kl_without_a_reward_is_no_plot(tmp_path):
    assert "Over-optimization" not in sections(written(tmp_path, 8))
