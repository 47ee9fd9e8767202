"""The loss of a predictor that looks at nothing: what a model of corrupted text has to beat.

Where a masked or sentinel-marked target is predicted from its surroundings, bits per byte and compressors say nothing;
the frequency of each target in training is the yardstick that is left.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

TRAIN_BATCHES = 128  # that targets are counted in


def unigram(
    train_batches: Iterable[Mapping[str, np.ndarray]],
    validation_batches: Iterable[Mapping[str, np.ndarray]],
    vocab_size: int,
) -> float:
    """Nats a target: mean of -log p(target) over `validation_batches`, weighted as the loss is.

    p(v) = (c(v) + 1) / (C + V) from the weights c(v) of the targets v in the first `TRAIN_BATCHES` of `train_batches`,
    which may be endless; C is their sum, V = `vocab_size`. Batches are those of data/batch.py; 0 without any weight.
    """
    counts = sum((_counts(batch, vocab_size) for batch in islice(train_batches, TRAIN_BATCHES)), np.ones(vocab_size))
    held_out = sum((_counts(batch, vocab_size) for batch in validation_batches), np.zeros(vocab_size))
    nats = np.log(counts.sum()) - np.log(counts)
    return float(held_out @ nats / max(held_out.sum(), 1e-9))


def _counts(batch: Mapping[str, np.ndarray], vocab_size: int) -> np.ndarray:
    return np.bincount(batch["targets"].reshape(-1), batch["weights"].reshape(-1), vocab_size)
