"""Mixing weighted sources: which source, and which of its rows, stands at each place of the endless stream.

The order of sources is one fixed period in which source i appears exactly w_i times, spread evenly, so that every
stretch of the stream has the proportions asked for and any place is found without walking there: the position of a run
is one number. Left out: weights that change during training, and sampling with replacement.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from data.batch import DataError

# Weights become whole numbers whose sum is the period. Ratios of small numbers (0.7 : 0.3, 1 : 3) are met exactly;
# where the exact period would be longer than this, each share is rounded to one part in this many.
_LONGEST_PERIOD = 1 << 16


class Mixture:
    def __init__(self, weights: Sequence[float]):
        self.counts = _whole_numbers(weights)
        # The j-th appearance of source i is due at (j + 1/2) / w_i of the period; sorting the due times spreads them.
        source = np.repeat(np.arange(len(self.counts)), self.counts)
        rank = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((rank + 0.5) / np.repeat(self.counts, self.counts), kind="stable")
        self._source, self._rank = source[order], rank[order]

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each place in the stream its source and how many rows of that source came before."""
        period, offset = np.divmod(places, len(self._source))
        source = self._source[offset]
        return source, period * np.asarray(self.counts)[source] + self._rank[offset]


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise DataError(f"The weight of a data source must be a positive number, not {weight}.")
    least = min(weights)
    ratios = [Fraction(weight / least).limit_denominator(1000) for weight in weights]
    scale = math.lcm(*(ratio.denominator for ratio in ratios))
    counts = [int(ratio * scale) for ratio in ratios]
    if sum(counts) > _LONGEST_PERIOD:
        counts = [max(1, round(weight / sum(weights) * _LONGEST_PERIOD)) for weight in weights]
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]
