"""Held-out figures from known losses."""

import math

import jax.numpy as jnp
import pytest

from train.evals.perplexity import evaluate
from train.losses import Loss


def run(batches, bytes_per_token=1.0):
    """Batches of (nats a token, tokens)."""
    eval_step = lambda model, batch: Loss(jnp.inf, jnp.float32(batch[1]), {"loss": jnp.float32(batch[0] * batch[1])})
    return evaluate(eval_step, None, batches, lambda batch: batch, bytes_per_token)


def test_bytes_at_random_cost_eight_bits():
    figures = run([(math.log(256), 10), (math.log(256), 3)])
    assert figures["validation/bits_per_byte"] == pytest.approx(8)
    assert figures["validation/perplexity"] == pytest.approx(256)


def test_tokens_of_four_bytes_share_their_bits():
    assert run([(math.log(2) * 6, 10)], 4.0)["validation/bits_per_byte"] == pytest.approx(1.5)


def test_each_token_counts_once():
    """9 tokens at 1 nat and 1 at 11 are 2 on average, whatever batches they came in."""
    assert run([(1.0, 9), (11.0, 1), (5.0, 0)])["validation/loss"] == pytest.approx(2)


def test_a_diverged_model_gives_a_number():
    assert math.isfinite(run([(1e4, 1)])["validation/perplexity"])
