"""Metrics of held-out data, computed from known losses."""

import math

import jax.numpy as jnp
import pytest

from train.evals.perplexity import added, figures, total
from train.losses import Loss


def run(batches, bytes_per_token=1.0):
    """Returns the figures of batches, each a pair (nats per token, tokens)."""

    def eval_step(model, batch, companions):
        return Loss(jnp.inf, jnp.float32(batch[1]), {"loss": jnp.float32(batch[0] * batch[1])})

    return figures(total(eval_step, None, batches, lambda batch: batch), bytes_per_token)


def test_bytes_at_random_cost_eight_bits():
    figures = run([(math.log(256), 10), (math.log(256), 3)])
    assert figures["bits_per_byte"] == pytest.approx(8)
    assert figures["perplexity"] == pytest.approx(256)


def test_tokens_of_four_bytes_share_their_bits():
    assert run([(math.log(2) * 6, 10)], 4.0)["bits_per_byte"] == pytest.approx(1.5)


def test_each_token_counts_once():
    """9 tokens at 1 nat and 1 token at 11 nats have a mean of 2, however they are divided into batches."""
    assert run([(1.0, 9), (11.0, 1), (5.0, 0)])["loss"] == pytest.approx(2)


def test_a_diverged_model_gives_a_number():
    assert math.isfinite(run([(1e4, 1)])["perplexity"])


def test_sources_that_are_read_in_part_count_by_what_they_hold():
    """One source has 3 tokens at 1 nat and is read completely; the other has 2 at 4 nats, and half of it is read."""
    loss = lambda nats, tokens: Loss(jnp.inf, tokens, {"loss": nats * tokens, "counts": jnp.ones(2) * tokens})
    both = added([loss(1.0, 3.0), loss(4.0, 1.0)], [1.0, 2.0])
    assert figures(both, None)["loss"] == pytest.approx(11 / 5)
    assert both.metrics["counts"].tolist() == [5, 5]
