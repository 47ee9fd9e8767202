"""Ratings: known strengths, references, the order of votes, intervals, length control; Krippendorff's examples."""

import itertools
import math
import random

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from train.evals import ratings
from train.evals.ratings import SCALE, Comparisons

STRENGTHS = np.array([0.9, 0.3, -0.2, -1.0])


def voted(seed, prompts, strengths=STRENGTHS, *, ties=0.2, slope=0.0, longer=(0, 0, 0, 0)):
    """Returns rows of simulated votes on all pairs; a longer answer wins more often by `slope`."""
    draw, rows = np.random.default_rng(seed), []
    for prompt in range(prompts):
        lengths = np.exp(draw.normal(5, 0.4, len(strengths)) + np.array(longer)[: len(strengths)])
        for i, j in itertools.combinations(range(len(strengths)), 2):
            a, b = lengths[i], lengths[j]
            p = 1 / (1 + math.exp(-(strengths[i] - strengths[j] + slope * (a - b) / (a + b))))
            score = 0.5 if draw.random() < ties * 4 * p * (1 - p) else float(draw.random() < p)
            rows.append((i, j, score, prompt, a, b) if draw.random() < 0.5 else (j, i, 1 - score, prompt, b, a))
    return rows


def test_known_strengths_are_recovered():
    found = ratings.rate(Comparisons.of(voted(0, 3000, ties=0)), 4, resamples=0)
    assert np.abs(found.rating_M - (1000 + SCALE * STRENGTHS)).max() < 12  # standard errors are about 5
    assert found.rating_M.mean() == pytest.approx(1000)


@pytest.mark.parametrize("control", [False, True])
def test_the_order_of_votes_and_of_answers_changes_no_bit(control):
    rows = voted(1, 30)
    found = ratings.rate(Comparisons.of(rows), 4, control=control, resamples=20)
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    again = ratings.rate(Comparisons.of(shuffled), 4, control=control, resamples=20)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    swapped = Comparisons.of([(j, i, 1 - score, prompt, b, a) for i, j, score, prompt, a, b in rows])
    np.testing.assert_allclose(ratings.rate(swapped, 4, control=control, resamples=0).rating_M, found.rating_M)


@pytest.mark.parametrize("control", [False, True])
def test_ratings_equal_those_of_scikit_learn(control):
    """The same model as a regression: a tie is a win and a loss of half the weight."""
    found = Comparisons.of(voted(2, 200, slope=1.0))
    design, n = np.zeros((len(found.score_N), 4 + control)), np.arange(len(found.score_N))
    design[n, found.first_N], design[n, found.second_N] = 1, -1
    if control:
        a, b = found.lengths_N2.T
        design[:, 4] = (a - b) / (a + b) / np.sqrt(np.mean(((a - b) / (a + b)) ** 2))
    weight = np.concatenate([found.score_N, 1 - found.score_N])
    label = np.repeat([1, 0], len(n))
    regression = LogisticRegression(C=(400 / SCALE) ** 2, fit_intercept=False, tol=1e-10, max_iter=1000)
    (expected,) = regression.fit(np.tile(design, (2, 1)), label, weight).coef_
    ours = ratings.rate(found, 4, control=control, resamples=0)
    np.testing.assert_allclose(ours.rating_M, 1000 + SCALE * expected[:4], atol=0.01)
    assert ours.length == pytest.approx(SCALE * expected[4] if control else 0, abs=0.01)


def test_intervals_hold_the_true_rating_about_as_often_as_they_say():
    inside, true = [], STRENGTHS[:3] - STRENGTHS[:3].mean()
    for seed in range(80):
        rows = voted(seed, 60, true, ties=0)
        found = ratings.rate(Comparisons.of(rows), 3, resamples=150, seed=seed)
        exact = 1000 + SCALE * true
        inside += [*((found.low_M <= exact) & (exact <= found.high_M))]
    assert 0.90 <= np.mean(inside) <= 0.985


def test_raters_that_repeat_each_other_do_not_narrow_the_intervals():
    once = voted(4, 60)
    width = lambda rows: np.ptp(np.stack(ratings.rate(Comparisons.of(rows), 4, resamples=300)[1:3]), axis=0)
    np.testing.assert_allclose(width(once * 5), width(once), rtol=0.1)


def test_a_model_that_only_wins_has_a_finite_rating():
    found = ratings.rate(Comparisons.of([(0, 1, 1.0, i, 1, 1) for i in range(50)]), 2, resamples=10)
    gap = found.rating_M[0] - found.rating_M[1]
    assert 800 < gap < 1300 and np.isfinite(np.stack(found[:3])).all()
    # Brute force over the strength s of the better one; that of the other is -s.
    s = np.linspace(0, 5, 500_001)
    best = s[np.argmax(-50 * np.log1p(np.exp(-2 * s)) - s**2 * (SCALE / 400) ** 2)]
    assert gap == pytest.approx(2 * SCALE * best, abs=0.01)


def test_models_that_nothing_connects_are_in_separate_groups():
    rows = [(0, 2, 1.0, 0, 1, 1), (1, 3, 0.0, 0, 1, 1), (1, 3, 0.0, 1, 1, 1)]
    found = Comparisons.of(rows)
    assert ratings.groups(found, 5) == [[0, 2], [1, 3], [4]]
    assert ratings.groups(Comparisons.of([*rows, (2, 3, 0.5, 0, 1, 1)]), 4) == [[0, 1, 2, 3]]
    rating = ratings.rate(found, 5, resamples=0).rating_M
    assert rating[[0, 2]].mean() == pytest.approx(1000) == rating[[1, 3]].mean() and rating[4] == 1000


def test_length_control_finds_equal_models_behind_unequal_lengths():
    """Equal strengths; model 0 writes longer answers, and length wins."""
    found = Comparisons.of(voted(5, 3000, np.zeros(2), ties=0, slope=2.0, longer=(0.5, 0)))
    plain, controlled = (ratings.rate(found, 2, control=control, resamples=0) for control in (False, True))
    assert plain.rating_M[0] - plain.rating_M[1] > 70
    assert abs(controlled.rating_M[0] - controlled.rating_M[1]) < 20
    a, b = found.lengths_N2.T
    assert controlled.length == pytest.approx(2.0 * SCALE * np.sqrt(np.mean(((a - b) / (a + b)) ** 2)), rel=0.1)


def test_the_win_matrix_counts_ties_as_half():
    won, count = ratings.wins(Comparisons.of([(0, 1, 1.0, 0, 1, 1), (1, 0, 0.5, 1, 1, 1), (2, 0, 0.0, 0, 1, 1)]), 3)
    assert won.tolist() == [[0, 1.5, 1], [0.5, 0, 0], [0, 0, 0]] and count.tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def test_expected_wins():
    assert ratings.expected(0) == 0.5 and ratings.expected(100) == pytest.approx(0.640, abs=5e-4)


def test_agreement_is_that_of_published_examples():
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), examples B and C."""
    votes = lambda *raters: [(unit, v) for values in raters for unit, v in enumerate(values) if v != "."]
    two = votes("aabbdcccedda", "babbbccceddd")
    assert ratings.agreement(two) == pytest.approx(0.692, abs=5e-4)
    four = votes("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    assert ratings.agreement(four) == pytest.approx(0.743, abs=5e-4)
    assert ratings.agreement([(1, "a"), (2, "b")]) is None and ratings.agreement([(1, "a"), (1, "a")]) is None
    assert ratings.agreement([(1, "a"), (1, "b"), (2, "b"), (2, "a")]) < 0
