"""A mixture of sources has exact proportions at every place."""

from fractions import Fraction

import numpy as np
import pytest

from data.batch import DataError
from data.rows.mixture import Mixture


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1], [1]),
        ([0.7, 0.3], [7, 3]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([100, 50, 25], [4, 2, 1]),
        ([0.5, 0.3, 0.15, 0.05], [10, 6, 3, 1]),
        ([1e-3, 1], [1, 1000]),
    ],
)
def test_exact_shares_spread_evenly(weights, counts):
    mixture = Mixture(weights)
    period = sum(counts)
    sources, ranks = mixture.locate(np.arange(3 * period))
    assert np.bincount(sources[:period]).tolist() == counts
    for source, count in enumerate(counts):
        mine = sources == source
        # The rows of a source come in order, and none is left out.
        np.testing.assert_array_equal(ranks[mine], np.arange(3 * count))
        # No source is ever far from its share.
        ahead = np.cumsum(mine) - np.arange(1, len(mine) + 1) * count / period
        assert np.abs(ahead).max() <= len(counts) / 2


def test_any_place_is_found_without_walking():
    mixture = Mixture([3, 2, 2])
    sources, ranks = mixture.locate(np.arange(1000))
    places = np.random.default_rng(0).permutation(1000)
    for found, walked in zip(mixture.locate(places), (sources, ranks), strict=True):
        np.testing.assert_array_equal(found, walked[places])


ODD = [
    [123456789.0, 98765432.1, 5555.5, 31415926.5],
    [1.0, 1.0004],
    [0.3333, 0.6667],
    [0.99999, 1e-5],
    [1.0, 1e-9, 1e-3 / 7, 0.123456789],
    [3e300, 1e300, 7e295],
]


def exact(weights) -> list[Fraction]:
    shares = [Fraction(weight) for weight in weights]
    return [share / sum(shares) for share in shares]


@pytest.mark.parametrize("weights", ODD)
def test_odd_weights_are_met_exactly_everywhere(weights):
    """No source is ever more than a few rows from its share: at the start, across blocks, and after 10^12 places."""
    mixture = Mixture(weights)
    for first in (0, (1 << 16) - 500, 10**6, 10**12 - 7):
        places = np.arange(first, first + 70_000)
        sources, ranks = mixture.locate(places)
        for source, share in enumerate(exact(weights)):
            mine = sources == source
            if mine.any():
                np.testing.assert_array_equal(np.diff(ranks[mine]), 1)
                assert abs(ranks[mine][0] - share * int(places[mine][0])) < len(weights)
                assert abs(ranks[mine][-1] + 1 - share * int(places[mine][-1])) < len(weights)
            else:
                assert share * 70_000 < len(weights)


def test_a_weight_below_1_in_65536_gives_what_it_says():
    share = 1e-6
    sources, _ = Mixture([1 - share, share]).locate(np.arange(3_000_000))
    assert np.bincount(sources).tolist() == [2_999_997, 3]


@pytest.mark.parametrize("weights", ODD[:3])
def test_any_place_of_odd_weights_is_found_without_walking(weights):
    walked = Mixture(weights).locate(np.arange(200_000))
    places = np.random.default_rng(0).permutation(200_000)[:1000]
    for found, all_ in zip(Mixture(weights).locate(places), walked, strict=True):
        np.testing.assert_array_equal(found, all_[places])


def test_an_order_by_due_times_is_that_of_its_period():
    """Weights 4 and 1 never make two rows due at once, so there is only one order."""
    repeating, other = Mixture([4, 1]), Mixture([4, 1 + 1e-13])
    assert repeating.period == [4, 1] and other.period is None
    for found, expected in zip(other.locate(np.arange(4000)), repeating.locate(np.arange(4000)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_errors(weight):
    with pytest.raises(DataError, match="weight of a data source must be a positive number"):
        Mixture([1, weight])


def test_a_weight_that_could_give_no_row_is_refused():
    with pytest.raises(DataError, match=r"The weight 1e-13 .* less than one part in 2\*\*40 .* to 0"):
        Mixture([1, 1e-13])
