"""Mixes weighted sources: finds the source, and the rank of its row, for each place of the endless stream.

With weights p_i that sum to 1, the j-th row of source i is due at time (j + 1/2) / p_i, and the stream holds all rows
in the order of their due times. So every stretch of the stream has the requested proportions, however small a weight
is. Any place can be computed without reading the places before it, so a run's position is a single number. If the
weights are ratios of small integers (0.7 : 0.3), the order repeats after a short period, which is stored. Otherwise the
order is computed in blocks. Left out: weights that change during training, and sampling with replacement.

S sources.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from data.batch import DataError

_LONGEST_PERIOD = 1 << 16
_BLOCK = 1 << 16  # places of the stream that are computed together
_LEAST_SHARE = 2.0**-40  # one row in a trillion; below this, float64 can't tell neighbouring due times apart


class Mixture:
    """The order of sources with these weights.

    Args:
      weights: [S], in any scale.

    Raises:
      DataError: a weight is not a positive number, or is less than 2**-40 of their sum.
    """

    def __init__(self, weights: Sequence[float]):
        self._shares = _shares(weights)
        self.period = _period(weights)  # rows of each source in one period; None: the order does not repeat soon
        self._block = lru_cache(maxsize=4)(self._order)
        if self.period is not None:
            counts = np.array(self.period)
            source, rank = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(n) for n in counts])
            order = np.argsort((rank + 0.5) / np.repeat(counts, counts), kind="stable")
            self._source, self._rank = source[order], rank[order]

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns each place's source, and how many rows of that source come before it; int, shaped like `places`."""
        if self.period is not None:
            period, offset = np.divmod(places, len(self._source))
            source = self._source[offset]
            return source, period * np.asarray(self.period)[source] + self._rank[offset]
        places = np.asarray(places)
        source, rank = np.empty_like(places), np.empty_like(places)
        block, offset = np.divmod(places, _BLOCK)
        for number in np.unique(block):
            mine = block == number
            source_of, rank_of = self._block(int(number))
            source[mine], rank[mine] = source_of[offset[mine]], rank_of[offset[mine]]
        return source, rank

    def _order(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sources and ranks of all places of a block.

        Up to time t, floor(p_i t + 1/2) rows of source i are due. Summed over the sources this differs from t by at
        most S / 2. So the rows of the block are due between S before its first place and S after its last one; one more
        row at each end allows for rounding. The number of rows before that window is known, and they precede the block.
        """
        slack = len(self._shares) + 1
        first, end = block * _BLOCK - slack, (block + 1) * _BLOCK + slack
        begins = np.maximum(np.floor(self._shares * first).astype(np.int64) - 1, 0)
        counts = np.ceil(self._shares * end).astype(np.int64) + 2 - begins
        source = np.repeat(np.arange(len(counts)), counts)
        rank = np.concatenate([begin + np.arange(count) for begin, count in zip(begins, counts, strict=True)])
        order = np.argsort((rank + 0.5) / self._shares[source], kind="stable")  # ties: in the order of the sources
        order = order[block * _BLOCK - begins.sum() :][:_BLOCK]
        return source[order], rank[order]


def _shares(weights: Sequence[float]) -> np.ndarray:
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise DataError(f"The weight of a data source must be a positive number, not {weight}.")
    shares = np.array(weights, float) / max(weights)
    shares /= shares.sum()
    if shares.min() < _LEAST_SHARE:
        raise DataError(
            f"The weight {min(weights)} of a data source is less than one part in 2**40 of all weights, so no run "
            "would reach one of its rows. Raise it, or set it to 0 to only evaluate the source."
        )
    return shares


def _period(weights: Sequence[float]) -> list[int] | None:
    """Returns integers in the ratios of the weights, to float64's precision, or None if their sum is too large."""
    ratios = [Fraction(weight / min(weights)).limit_denominator(1000) for weight in weights]
    if any(abs(ratio * min(weights) / weight - 1) > 1e-14 for ratio, weight in zip(ratios, weights, strict=True)):
        return None
    scale = math.lcm(*(ratio.denominator for ratio in ratios))
    counts = [int(ratio * scale) for ratio in ratios]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    return counts if sum(counts) <= _LONGEST_PERIOD else None
