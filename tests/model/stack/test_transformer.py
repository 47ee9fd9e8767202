"""The stack: remat and the unrolling of scans do not change results."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import tiny

CONFIG = dataclasses.replace(tiny.LLAMA, dropout=0.1)
TOKENS, SEGMENTS, POSITIONS = tiny.packed_rows(2, 16)


@functools.cache
def gradients(remat, scan_unroll):
    model = tiny.drawn(dataclasses.replace(CONFIG, remat=remat, scan_unroll=scan_unroll))
    key = jax.random.key(3)
    loss = lambda model: jnp.sin(3 * model(TOKENS, SEGMENTS, POSITIONS, key=key).x_BTD).sum()
    return jax.device_get(jax.tree.leaves(jax.jit(jax.grad(loss))(model)))


@pytest.mark.parametrize(("remat", "scan_unroll"), [("dots", 1), ("full", 1), ("none", 2), ("full", 5)])
def test_remat_and_unrolling_keep_the_gradient(remat, scan_unroll):
    for a, b in zip(gradients(remat, scan_unroll), gradients("none", 1), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def test_layers_differ():
    """Each layer is initialized with its own random key."""
    query = tiny.drawn(CONFIG).stack.segments[0][0].attention.query[...]
    assert jnp.abs(query[0] - query[1]).max() > 0.1
