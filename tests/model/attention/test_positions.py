"""Rotary positions equal a rotation of complex numbers, and scores depend only on relative positions."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import axes
from model.attention.positions import RelativeBias, rotate, rotation
from model.config import Rope
from tests.model import tiny

THETA, DIM = 100.0, 8


def turned(x_TH, positions_T):
    """Returns x [T, H] rotated to these positions."""
    turn = rotation(np.asarray(positions_T)[None], DIM, Rope(theta=THETA))
    return np.asarray(rotate(np.asarray(x_TH, np.float32)[None, :, None], turn))[0, :, 0]


def test_pairs_turn_like_complex_numbers():
    x, positions = np.random.default_rng(0).normal(size=(5, DIM)), np.array([0, 1, 7, 100, 1000])
    numbers = x[:, : DIM // 2] + 1j * x[:, DIM // 2 :]
    numbers = numbers * np.exp(1j * positions[:, None] * THETA ** (-np.arange(0, DIM, 2) / DIM))
    np.testing.assert_allclose(turned(x, positions), np.concatenate([numbers.real, numbers.imag], -1), atol=2e-4)


def test_scores_depend_on_the_distance_only():
    q, k = np.random.default_rng(1).normal(size=(2, 1, DIM))
    score = lambda q_position, k_position: (turned(q, [q_position]) * turned(k, [k_position])).sum()
    for distance in (0, 1, 13):
        near, far = score(distance, 0), score(500 + distance, 500)
        assert abs(near - far) < 1e-3
    assert abs(score(1, 0) - score(2, 0)) > 0.05


@pytest.mark.parametrize("shape", [None, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_relative_scores_are_those_of_a_look_up_on_every_platform(shape, monkeypatch):
    """On a TPU, the look-up is a matmul, so that its gradient does not add up rows one after another."""
    distance, weights = (np.random.default_rng(seed) for seed in (0, 1))
    distance, weights = distance.integers(-20, 20, (4, 6, 6), np.int32), weights.standard_normal((4, 8, 1, 6, 6))
    place = lambda bias: jax.tree.map(lambda leaf: axes.place(leaf, "positions", "kv_heads", "group"), bias)
    bias = tiny.filled(jax.eval_shape(lambda: RelativeBias(tiny.SWITCH, nnx.Rngs(0), causal=False)))

    def run(bias):
        scores = lambda bias: bias(axes.place(jnp.asarray(distance), "batch", "length", None))
        f = jax.jit(jax.value_and_grad(lambda bias: (scores(bias) * weights).sum()))
        return scores(bias), f(bias)[1], f.lower(bias).as_text()

    wanted, wanted_gradient, text = run(bias)
    assert "scatter" in text
    monkeypatch.setattr(axes, "platform", lambda: "tpu")
    with axes.use_mesh(axes.make_mesh(shape)) if shape else contextlib.nullcontext():
        found, gradient, text = run(place(bias))
    assert "scatter" not in text and "gather" not in text
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(gradient.table[...], wanted_gradient.table[...], atol=1e-5)
