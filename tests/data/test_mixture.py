import numpy as np
import pytest

from data.batch import DataError
from data.mixture import Mixture


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
        # Each row of a source comes in order, none is left out.
        np.testing.assert_array_equal(ranks[mine], np.arange(3 * count))
        # Nowhere is a source far ahead of its share or behind it.
        ahead = np.cumsum(mine) - np.arange(1, len(mine) + 1) * count / period
        assert np.abs(ahead).max() <= len(counts) / 2


def test_any_place_is_found_without_walking():
    mixture = Mixture([3, 2, 2])
    sources, ranks = mixture.locate(np.arange(1000))
    places = np.random.default_rng(0).permutation(1000)
    for found, walked in zip(mixture.locate(places), (sources, ranks), strict=True):
        np.testing.assert_array_equal(found, walked[places])


def test_odd_weights_are_met_closely():
    weights = np.array([123456789.0, 98765432.1, 5555.5, 31415926.5])
    sources, _ = Mixture(weights).locate(np.arange(1 << 16))
    assert np.abs(np.bincount(sources) / (1 << 16) - weights / weights.sum()).max() < 2 / (1 << 16)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_errors(weight):
    with pytest.raises(DataError, match="weight of a data source must be a positive number"):
        Mixture([1, weight])
