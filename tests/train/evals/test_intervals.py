"""Intervals cover the truth in 95 of 100 simulations, and equal those of scipy."""

import numpy as np
import pytest
from scipy import stats

from train.evals import intervals
from train.evals.intervals import Interval, interval, mean, paired

RUNS = 800  # the standard error of a coverage of 0.95 is 0.008, so 0.03 is about four of them


@pytest.fixture
def simulated(monkeypatch):
    """Returns a function that calls one of a generator in all runs. To be fast, they have few resamples, and their own:
    the error of the same few would be in the same direction in all runs."""
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)

    def run(call):
        found = []
        for number in range(RUNS):
            monkeypatch.setattr(intervals, "_SEED", number)
            found.append(call(np.random.default_rng([number, 1])))
        return found

    return run


def coverage(found, truth):
    """Returns the share of intervals that contain the truth."""
    return np.mean([low <= truth <= high for low, high in found])


@pytest.mark.parametrize(("count", "least"), [(20, 0.915), (100, 0.93)])
def test_wilson_covers_shares(count, least):
    """Sums the exact probabilities of all outcomes. They jump with the share, around 0.95 on average."""
    shares = np.linspace(0.05, 0.95, 91)
    right = np.arange(count + 1)
    ends = np.array([interval(np.repeat([[1.0], [0.0]], [k, count - k], axis=0)) for k in right])
    inside = (ends[:, :1] <= shares) & (shares <= ends[:, 1:])
    covered = (stats.binom.pmf(right[:, None], count, shares) * inside).sum(0)
    assert covered.min() > least and covered.mean() == pytest.approx(0.95, abs=0.006)


@pytest.mark.parametrize("count", [20, 100])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: rng.exponential(1, n), 1.0),
        (lambda rng, n: np.where(rng.random(n) < 0.6, 0, rng.beta(2, 2, n)), 0.2),  # like F1: many are 0
        (lambda rng, n: rng.normal(0, 1, n), 0.0),
    ],
    ids=["exponential", "mostly zero", "normal"],
)
def test_bootstrap_covers_means(simulated, count, draw, truth):
    found = simulated(lambda rng: interval(draw(rng, count)[:, None]))
    assert coverage(found, truth) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("clusters", [15, 60])
def test_items_that_share_a_context_need_clusters(simulated, clusters):
    """Questions about one text are right with a probability of its own; one by one, their intervals are too narrow."""

    def draw(rng):
        of_N = np.repeat(np.arange(clusters), rng.integers(1, 10, clusters))
        return (rng.random(len(of_N)) < rng.beta(1, 1, clusters)[of_N]).astype(float)[:, None], mean, of_N

    found = simulated(lambda rng: interval(*draw(rng)))
    assert coverage(found, 0.5) == pytest.approx(0.95, abs=0.03)
    assert coverage(simulated(lambda rng: interval(*draw(rng)[:2])), 0.5) < 0.85


def test_a_ratio_of_sums_is_covered(simulated):
    """As BLEU's precisions, a ratio of sums is no mean of ratios."""

    def call(rng):
        total = rng.integers(1, 30, 40)
        rows = np.stack([rng.binomial(total, rng.beta(2, 4, 40)), total], axis=1)
        return interval(rows, lambda sums, _: sums[:, 0] / sums[:, 1])

    assert coverage(simulated(call), 1 / 3) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("count", [12, 40])
def test_paired_differences_are_covered_and_rarely_significant_by_chance(simulated, count):
    """Two models of equal quality find the same items hard. The p-values of 12 items are exact, of 40 random."""

    def call(rng):
        hard = rng.normal(0, 3, (count, 1))
        return paired(hard + rng.normal(0, 1, (count, 1)), hard + rng.normal(0, 1, (count, 1)))

    found = simulated(call)
    assert coverage([one.interval for one in found], 0) == pytest.approx(0.95, abs=0.03)
    for level in (0.05, 0.5):  # a p-value is at most `level` with this probability
        error = np.sqrt(level * (1 - level) / RUNS)
        assert np.mean([one.p <= level for one in found]) == pytest.approx(level, abs=3 * error)


def test_wilson_as_scipy():
    for right, count in ((0, 3), (5, 5), (7, 10), (400, 1000)):
        low, high = intervals.wilson(np.array([right / count]), np.array([float(count)]))
        wanted = stats.binomtest(right, count).proportion_ci(method="wilson")
        np.testing.assert_allclose([low[0], high[0]], wanted, atol=1e-4)


def test_as_scipy(monkeypatch):
    rng = np.random.default_rng(3)
    ours, theirs = rng.exponential(1, 200), rng.exponential(1, 200)
    theirs += 0.4 * (theirs > ours) + 0.12
    # Without the widening for few items, which scipy lacks.
    monkeypatch.setattr(intervals, "_student", lambda degrees: stats.norm.ppf(0.975) * np.sqrt(degrees / (degrees + 1)))
    wanted = stats.bootstrap((ours,), np.mean, method="BCa", n_resamples=10_000, rng=rng).confidence_interval
    np.testing.assert_allclose(interval(ours[:, None]), wanted, rtol=0.01)
    found = paired(ours[:, None], theirs[:, None])
    apart = (ours - theirs,)
    wanted = stats.bootstrap(apart, np.mean, method="BCa", n_resamples=10_000, rng=rng).confidence_interval
    np.testing.assert_allclose(found.interval, wanted, atol=0.02)
    of_means = lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis)
    options = dict(permutation_type="samples", vectorized=True, n_resamples=10_000, rng=rng)
    test = stats.permutation_test((ours, theirs), of_means, **options)
    assert found.value == pytest.approx(test.statistic)
    assert 0.01 < test.pvalue < 0.3 and found.p == pytest.approx(test.pvalue, abs=0.015)
    few = paired(ours[:9, None], theirs[:9, None])  # both try all 512 swaps
    test = stats.permutation_test((ours[:9], theirs[:9]), of_means, **options)
    assert 0 < few.p < 1 and few.p == pytest.approx(test.pvalue)


def test_students_quantiles():
    wanted = stats.t.ppf(0.975, np.arange(4, 60))
    np.testing.assert_allclose([intervals._student(degrees) for degrees in range(4, 60)], wanted, rtol=0.003)


def test_swaps_of_clusters_are_fewer():
    """The items of a cluster are swapped together: of 3 clusters, 2 of 8 swaps give a difference of 1."""
    ours, theirs = np.ones((6, 1)), np.zeros((6, 1))
    assert paired(ours, theirs, clusters=["a", "a", "b", "b", "c", "c"]).p == 2 / 8
    assert paired(ours, theirs).p == 2 / 64


def test_clusters_may_have_any_keys_and_order():
    rows = np.random.default_rng(0).random((30, 1))
    found = interval(rows, clusters=[("a", number % 7) for number in range(30)])
    order = np.argsort(np.arange(30) % 7, kind="stable")
    assert found == pytest.approx(interval(rows[order], clusters=np.arange(30)[order] % 7))
    assert found != interval(rows)
    assert interval(rows, clusters=range(30)) == interval(rows)


def test_the_same_items_give_the_same_interval_in_parts(monkeypatch):
    rows = np.random.default_rng(0).random((50, 1))
    found = interval(rows)
    assert interval(rows) == found
    monkeypatch.setattr(intervals, "_DRAWN", 7000)  # 140 resamples at a time
    assert interval(rows) == pytest.approx(found, abs=0.01) and sum(intervals._parts(50)) == intervals.RESAMPLES


def test_what_items_cannot_tell():
    one = np.array([[0.3]])
    assert interval(one) is None and interval(np.full((20, 1), 0.3)) is None
    assert paired(one, one + 1) == (pytest.approx(-1), None, 1.0)
    equal = paired(np.full((20, 1), 0.3), np.full((20, 1), 0.3))
    assert equal == (0.0, None, 1.0)
    # All wrong: Wilson's interval has a width, also over clusters, which are its trials.
    assert interval(np.zeros((1, 1))) == pytest.approx((0, 0.793), abs=1e-3)
    low, high = interval(np.zeros((20, 1)))
    assert low == 0 and 0.1 < high < 0.2
    assert interval(np.zeros((20, 1)), clusters=[number // 2 for number in range(20)]) == interval(np.zeros((10, 1)))
    assert isinstance(interval(np.eye(1)), Interval)


def test_entries_are_spelled():
    found = intervals.entry(Interval(0.25, 0.5), 7)
    assert found == {"n": 7, "low": 0.25, "high": 0.5} and intervals.spelled(found, "{:.2f}") == "0.25 to 0.50"
    assert intervals.entry(None, 1) == {"n": 1, "low": None, "high": None}
    assert intervals.spelled(intervals.entry(None, 1), "{:.2f}") == intervals.spelled({}, "{:.2f}") == "–"
    assert [intervals.p_value(p) for p in (1e-4, 0.0011, 1.0)] == ["<0.001", "0.001", "1.000"]


def test_refuses():
    for rows in (np.array([[1.0], [np.nan]]), np.array([[np.inf], [0.0]]), np.zeros((0, 1))):
        with pytest.raises(ValueError, match="must be finite numbers of at least one item"):
            interval(rows)
    with pytest.raises(ValueError, match=r"shapes \(3, 1\) and \(2, 1\)"):
        paired(np.zeros((3, 1)), np.zeros((2, 1)))
