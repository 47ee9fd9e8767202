"""Spikes are skipped, but new levels and noise are not. The reference is numpy's median and MAD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import guard

JUDGE = jax.jit(guard.judge, static_argnums=3)


def filled(losses, norms):
    recent = guard.empty()
    for loss, norm in zip(losses, norms, strict=True):
        reason, recent = JUDGE(recent, jnp.float32(loss), jnp.float32(norm), 1e9)
        assert reason == 0
    return recent


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return 3 + 0.2 * rng.standard_normal(guard.WINDOW), np.exp(0.3 * rng.standard_normal(guard.WINDOW))


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_the_limit_is_that_of_the_median_and_the_mad(noise, which):
    losses, norms = noise
    recent = filled(losses, norms)
    values = losses if which == "loss" else np.log(norms)
    sigma = 1.4826 * np.median(np.abs(values - np.median(values)))
    limit = np.median(values) + 5 * max(sigma, 0.02 * np.median(values) if which == "loss" else 0.1)
    for factor, expected in ((0.999, 0), (1.001, 2 if which == "loss" else 3)):
        value = limit * factor
        loss, norm = (value, 1.0) if which == "loss" else (3.0, np.exp(value))
        reason, after = JUDGE(recent, jnp.float32(loss), jnp.float32(norm), 5.0)
        assert reason == expected
        if expected:
            np.testing.assert_array_equal(after, recent)  # skipped values do not change later decisions
        else:
            np.testing.assert_allclose(after[:, -1], [loss, np.log(norm)], rtol=1e-5)
            np.testing.assert_array_equal(after[:, :-1], recent[:, 1:])


def test_nothing_is_a_spike_before_the_window_is_full(noise):
    losses, norms = (part[:-1] for part in noise)
    recent = filled(losses, norms)
    assert JUDGE(recent, jnp.float32(1e9), jnp.float32(1e9), 5.0)[0] == 0
    assert JUDGE(recent, jnp.float32(jnp.nan), jnp.float32(1.0), 5.0)[0] == 1


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (np.inf, 1.0), (3.0, np.nan), (3.0, np.inf)])
@pytest.mark.parametrize("deviations", [0.0, 10.0])
def test_what_is_not_finite_is_left_out_always(noise, loss, norm, deviations):
    recent = filled(*noise)
    reason, after = JUDGE(recent, jnp.float32(loss), jnp.float32(norm), deviations)
    assert guard.REASONS[int(reason)] == "not finite"
    np.testing.assert_array_equal(after, recent)


def test_equal_numbers_make_small_changes_no_spikes():
    recent = filled([2.0] * guard.WINDOW, [1.0] * guard.WINDOW)
    assert JUDGE(recent, jnp.float32(2.3), jnp.float32(2.5), 10.0)[0] == 0
    assert JUDGE(recent, jnp.float32(2.5), jnp.float32(1.0), 10.0)[0] == 2
    assert JUDGE(recent, jnp.float32(2.0), jnp.float32(2.8), 10.0)[0] == 3
