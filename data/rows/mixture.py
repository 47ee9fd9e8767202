"""Mixing weighted sources: which source, and which of its rows, stands at each place of the endless stream.

With weights p_i that sum to 1, the j-th row of source i is due at (j + 1/2) / p_i, and the stream is all rows in the
order in which they are due. So every stretch of it has the proportions that were asked for, however small a weight is,
and any place is found without walking there: the position of a run is one number. Where the weights are ratios of small
numbers (0.7 : 0.3), the order repeats after a short period, which is kept; else it is worked out in blocks. Left out:
weights that change during training, and sampling with replacement.

S sources.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from data.batch import DataError

_LONGEST_PERIOD = 1 << 16
_BLOCK = 1 << 16  # places of the stream that are worked out together
_LEAST_SHARE = 2.0**-40  # one row in a trillion; due times of float64 tell neighbours apart up to there


class Mixture:
    """The order of sources with these weights.

    Raises:
      DataError: a weight is no positive number, or too small beside the others to be met.
    """

    def __init__(self, weights: Sequence[float]):
        self._shares = _shares(weights)
        self.period = _period(weights)  # how often each source appears in the order that repeats, None: it does not
        self._block = lru_cache(maxsize=4)(self._order)
        if self.period is not None:
            counts = np.array(self.period)
            source, rank = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(n) for n in counts])
            order = np.argsort((rank + 0.5) / np.repeat(counts, counts), kind="stable")
            self._source, self._rank = source[order], rank[order]

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each place in the stream its source and how many rows of that source came before."""
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
        """Sources and ranks of all places of a block.

        Up to a time t, floor(p_i t + 1/2) rows of source i are due, t in all but for S / 2. So the rows of these places
        are due between S before the block's first place and S behind its last; a row more at each end allows for
        rounding. The rows before those, whose number is known, stand before the block.
        """
        slack = len(self._shares) + 1
        first, end = block * _BLOCK - slack, (block + 1) * _BLOCK + slack
        begins = np.maximum(np.floor(self._shares * first).astype(np.int64) - 1, 0)
        counts = np.ceil(self._shares * end).astype(np.int64) + 2 - begins
        source = np.repeat(np.arange(len(counts)), counts)
        rank = np.concatenate([begin + np.arange(count) for begin, count in zip(begins, counts, strict=True)])
        order = np.argsort((rank + 0.5) / self._shares[source], kind="stable")  # sources as given where both are due
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
            f"The weight {min(weights)} of a data source is less than one part in 2**40 of all weights, and would give "
            "no row in any run. Make it larger, or 0: the source is then only evaluated."
        )
    return shares


def _period(weights: Sequence[float]) -> list[int] | None:
    """Whole numbers in the ratios of the weights, as float64 knows them; None where their sum would be too large."""
    ratios = [Fraction(weight / min(weights)).limit_denominator(1000) for weight in weights]
    if any(abs(ratio * min(weights) / weight - 1) > 1e-14 for ratio, weight in zip(ratios, weights, strict=True)):
        return None
    scale = math.lcm(*(ratio.denominator for ratio in ratios))
    counts = [int(ratio * scale) for ratio in ratios]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    return counts if sum(counts) <= _LONGEST_PERIOD else None
