"""The loss of a predictor that looks at nothing: what a model of corrupted text has to beat.

Where a masked or sentinel-marked target is predicted from its surroundings, bits per byte and compressors say nothing;
the frequency of each target in training is the yardstick that is left.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

TRAIN_BATCHES = 128  # that targets are counted in


def nats_of_targets(train_batches: Iterable[Mapping[str, np.ndarray]], vocab_size: int) -> np.ndarray:
    """-log p(v) of every target v, float64 [V].

    p(v) = (c(v) + 1) / (C + V) from the weights c(v) of the targets v in the first `TRAIN_BATCHES` of `train_batches`,
    which may be endless; C is their sum, V = `vocab_size`. Batches are those of data/batch.py.
    """
    counts = sum((_counts(batch, vocab_size) for batch in islice(train_batches, TRAIN_BATCHES)), np.ones(vocab_size))
    return np.log(counts.sum()) - np.log(counts)


def unigram(nats_V: np.ndarray, batches: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Nats of all targets of held-out batches, each times its weight: a sum, as those of a Loss."""
    return float(sum(_counts(batch, len(nats_V)) @ nats_V for batch in batches))


def _counts(batch: Mapping[str, np.ndarray], vocab_size: int) -> np.ndarray:
    return np.bincount(batch["targets"].reshape(-1), batch["weights"].reshape(-1), vocab_size)
