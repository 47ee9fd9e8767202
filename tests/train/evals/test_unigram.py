"""The unigram baseline equals a count by hand."""

import math
from itertools import repeat

import numpy as np
import pytest

from train.evals import unigram as unigram_module
from train.evals.unigram import nats_of_targets, unigram


def batch(targets, weights):
    return {"targets": np.array([targets], np.int32), "weights": np.array([weights], np.float32)}


def mean(train, held_out, vocab_size):
    weight = sum(batch["weights"].sum() for batch in held_out)
    return unigram(nats_of_targets(train, vocab_size), held_out) / weight


def test_a_count_by_hand():
    # The counts are 1, 3, 0, 1: 5 tokens, 4 kinds.
    train = [batch([0, 1, 1, 2], [1, 1, 1, 0]), batch([1, 3, 0, 0], [1, 1, 0, 0])]
    held_out = [batch([1, 2, 3], [1, 1, 0]), batch([1, 0, 0], [0.5, 0, 0])]
    expected = -(1.5 * math.log(4 / 9) + math.log(1 / 9)) / 2.5
    assert mean(train, held_out, 4) == pytest.approx(expected)


def test_without_training_targets_every_token_is_as_likely():
    assert mean([], [batch([0, 5, 7], [1, 1, 1])], 64) == pytest.approx(math.log(64))


def test_no_other_fixed_distribution_does_better_on_its_own_text():
    targets = np.random.default_rng(0).zipf(1.5, 20_000) % 50
    text = [batch(targets, np.ones(len(targets)))]
    share = np.bincount(targets, minlength=50) / len(targets)
    entropy = -sum(p * math.log(p) for p in share if p)
    assert entropy <= mean(text, text, 50) < entropy + 0.01


def test_an_endless_stream_is_read_so_far(monkeypatch):
    monkeypatch.setattr(unigram_module, "TRAIN_BATCHES", 3)
    assert mean(repeat(batch([0], [1])), [batch([0], [1])], 2) == pytest.approx(-math.log(4 / 5))
