"""The unigram baseline: the loss of a predictor that knows only how often each target occurs in training.

When masked tokens or spans are predicted from their context, bits per byte and compressors are no baseline, because
the targets are not the whole text. The unigram loss is the baseline that remains.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

TRAIN_BATCHES = 128  # targets are counted in so many batches


def nats_of_targets(train_batches: Iterable[Mapping[str, np.ndarray]], vocab_size: int) -> np.ndarray:
    """Returns -log p(v) of every target v, float64 [V], in nats.

    p(v) = (c(v) + 1) / (C + V), where c(v) is the summed weight of target v in the first `TRAIN_BATCHES` batches, C is
    the sum of all c(v), and V is `vocab_size`.

    Args:
      train_batches: batches of data/batch.py; there may be infinitely many.
      vocab_size: number of tokens.
    """
    counts = sum((_counts(batch, vocab_size) for batch in islice(train_batches, TRAIN_BATCHES)), np.ones(vocab_size))
    return np.log(counts.sum()) - np.log(counts)


def unigram(nats_V: np.ndarray, batches: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Returns the weighted sum of nats over all targets of held-out batches; like a Loss, it is not yet a mean."""
    return float(sum(_counts(batch, len(nats_V)) @ nats_V for batch in batches))


def _counts(batch: Mapping[str, np.ndarray], vocab_size: int) -> np.ndarray:
    return np.bincount(batch["targets"].reshape(-1), batch["weights"].reshape(-1), vocab_size)
