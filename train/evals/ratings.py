"""Ratings of models from comparisons of their answers: Bradley and Terry's model, as public arenas use it.

The probability that model i beats model j is sigmoid(s_i - s_j) (Biometrika 39, 1952; arXiv:2403.04132 for language
models). A tie counts as half a win for each. Ratings are on the Elo scale, 1000 + 400 / ln(10) * s, so 100 points more
win 64 % of the comparisons; only differences mean something, and the mean is 1000.

Every strength has a normal prior around 0 with a deviation of 400 points. After a few dozen comparisons it changes
next to nothing. Without it, a model that wins all of its comparisons would have an infinite rating.

Models that no chain of comparisons connects can't be placed on one scale. Each such group then has a mean of 1000 of
its own, and `groups` says which models are in which.

Longer answers win more often for their length alone. Length control adds one coefficient for the difference of the
lengths, (l_i - l_j) / (l_i + l_j), as the arena's style control does (lmsys.org/blog/2024-08-28-style-control). What is
left for the strengths is what they would be at equal lengths, like AlpacaEval's length-controlled win rate
(arXiv:2404.04475). Unlike the arena's code, ours scales the difference without centring it, because exchanging the two
answers of a comparison must not change the ratings.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np

SCALE = 400 / math.log(10)  # points of a strength of 1
MEAN = 1000.0
_PRECISION = (SCALE / 400) ** 2  # of the prior, for strengths in nats
_STEPS = 50  # Newton's method takes about 5


class Comparisons(NamedTuple):
    """N comparisons. The arrays that length control needs may be left at zero if it is not asked for."""

    first_N: np.ndarray  # int: number of the model whose answer is the first one
    second_N: np.ndarray  # int
    score_N: np.ndarray  # float: 1 if the first answer is better, 0 if the second one is, 0.5 for a tie
    prompt_N: np.ndarray  # int: what was answered
    lengths_N2: np.ndarray  # lengths of both answers, in any unit

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, float, int, int, int]]) -> "Comparisons":
        """Makes them from rows (first, second, score, prompt, length of the first, length of the second)."""
        table = np.array(sorted(rows), float).reshape(-1, 6)  # sorted, so that the order of votes changes no bit
        first, second, score, prompt = table[:, :4].T
        return cls(first.astype(int), second.astype(int), score, prompt.astype(int), table[:, 4:])


class Ratings(NamedTuple):
    """Ratings of M models, in points."""

    rating_M: np.ndarray
    low_M: np.ndarray  # ends of the intervals that hold the rating with a probability of 95 %
    high_M: np.ndarray
    length: float  # points that a length difference of one standard deviation is worth; 0 without length control


def rate(found: Comparisons, models: int, *, control: bool = False, resamples: int = 1000, seed: int = 0) -> Ratings:
    """Returns ratings with bootstrap intervals (percentiles).

    The bootstrap draws prompts with replacement, each with all of its comparisons, because the comparisons of one
    prompt depend on each other.

    Args:
      found: at least one comparison.
      models: how many models there are; those without comparisons are rated 1000.
      control: control for the length.
      resamples: how many bootstrap samples are drawn.
      seed: of the bootstrap.
    """
    design = _design(found, models, control)
    best = _fitted(design, found.score_N, np.ones(len(design)))
    _, cluster_N = np.unique(found.prompt_N, return_inverse=True)
    clusters = int(cluster_N.max()) + 1
    random, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(random.integers(clusters, size=clusters), minlength=clusters)
        drawn.append(_fitted(design, found.score_N, times[cluster_N], best))
    low, high = np.percentile(np.stack(drawn or [best]), [2.5, 97.5], axis=0)
    points = lambda strengths: MEAN + SCALE * strengths[:models]
    return Ratings(points(best), points(low), points(high), SCALE * float(best[models]) if control else 0.0)


def expected(difference: float) -> float:
    """Returns the probability of a win with a rating that is higher by `difference` points."""
    return 1 / (1 + 10 ** (-difference / 400))


def _design(found: Comparisons, models: int, control: bool) -> np.ndarray:
    """Returns the matrix [N, M] of the logits' coefficients, or [N, M + 1] with length control."""
    rows = np.arange(len(found.first_N))
    design = np.zeros((len(rows), models + control))
    design[rows, found.first_N] += 1
    design[rows, found.second_N] -= 1
    if control:
        first, second = found.lengths_N2.T
        difference = (first - second) / np.maximum(first + second, 1)
        design[:, -1] = difference / (math.sqrt(np.mean(difference**2)) or 1)
    return design


def _fitted(design: np.ndarray, score_N: np.ndarray, weight_N: np.ndarray, start: np.ndarray | None = None):
    """Returns the coefficients of the logistic regression with the prior, by Newton's method with shorter steps where
    a whole one would not help. The objective is strictly convex, so there is one answer."""
    x = np.zeros(design.shape[1]) if start is None else start

    def loss(x: np.ndarray) -> float:
        logits = design @ x
        return float(weight_N @ (np.logaddexp(0, logits) - score_N * logits) + _PRECISION * (x @ x) / 2)

    now = loss(x)
    for _ in range(_STEPS):
        p_N = 1 / (1 + np.exp(-(design @ x)))
        gradient = design.T @ (weight_N * (p_N - score_N)) + _PRECISION * x
        hessian = (design * (weight_N * p_N * (1 - p_N))[:, None]).T @ design + _PRECISION * np.eye(len(x))
        step = np.linalg.solve(hessian, gradient)
        while (then := loss(x - step)) > now and np.abs(step).max() > 1e-12:
            step = step / 2
        x, now = x - step, min(now, then)
        if np.abs(step).max() < 1e-9:
            break
    return x


def groups(found: Comparisons, models: int) -> list[list[int]]:
    """Returns the groups of models that comparisons connect, directly or through others; each is sorted."""
    root = list(range(models))
    for i, j in {*zip(found.first_N.tolist(), found.second_N.tolist(), strict=True)}:
        old, new = root[i], root[j]
        root = [new if r == old else r for r in root]
    return [[i for i in range(models) if root[i] == r] for r in dict.fromkeys(root)]


def wins(found: Comparisons, models: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (won_MM, count_MM): wins of the row's model over the column's, a tie as half, and their comparisons."""
    won, count = np.zeros((models, models)), np.zeros((models, models), int)
    for i, j, score in (
        (found.first_N, found.second_N, found.score_N),
        (found.second_N, found.first_N, 1 - found.score_N),
    ):
        np.add.at(won, (i, j), score)
        np.add.at(count, (i, j), 1)
    return won, count


def agreement(votes: Iterable[tuple[Hashable, Hashable]]) -> float | None:
    """Returns Krippendorff's alpha for nominal values: 1 is agreement, 0 is what chance gives.

    alpha = 1 - (n - 1) * sum_u d_u / (m_u - 1) / sum_(c != k) n_c * n_k, where unit u has m_u values and d_u ordered
    pairs of different ones, and n_c of the n values in units with at least two are c (Krippendorff, Computing
    Krippendorff's Alpha-Reliability, 2011, section C).

    Args:
      votes: (unit, value) of each vote; of a rater at most one for each unit.

    Returns:
      None if no unit has two votes, or all votes are the same.
    """
    units: defaultdict[Hashable, Counter] = defaultdict(Counter)
    for unit, value in votes:
        units[unit][value] += 1
    paired = [counts for counts in units.values() if counts.total() > 1]
    total: Counter = sum(paired, Counter())
    n = total.total()
    expected = n * n - sum(count * count for count in total.values())
    if not expected:
        return None
    square = lambda counts: sum(count * count for count in counts.values())
    observed = sum((c.total() ** 2 - square(c)) / (c.total() - 1) for c in paired)
    return 1 - (n - 1) * observed / expected
