"""Rotary positions: complex numbers as the reference, and what makes them relative."""

import numpy as np

from model.config import Rope
from model.positions import rotate, rotation

THETA, DIM = 100.0, 8


def turned(x_TH, positions_T):
    """x [T, H] turned to these positions."""
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
