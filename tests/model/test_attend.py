"""Attention: blocks against one piece against numpy, values and gradients; grouped heads against repeated ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import masks
from model.attend import attend
from model.attention import Attention
from model.positions import rotation
from tests.model import tiny


def inputs(length, batch=2, heads=2, group=2, dim=8):
    rng = np.random.default_rng(length)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    _, segments, positions = tiny.packed_rows(batch, length, seed=length)
    real = jnp.asarray(segments > 0)[:, :, None, None, None]  # what padding attends to is nobody's business
    q, k, v = draw(batch, length, heads, group, dim), draw(batch, length, heads, dim), draw(batch, length, heads, dim)
    return q, k, v, draw(*q.shape) * real, masks.packed(jnp.asarray(segments), jnp.asarray(positions)), real


@functools.partial(jax.jit, static_argnames="implementation")
def values_and_gradients(q, k, v, dy, mask, implementation):
    y, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask, aligned=True, implementation=implementation), q, k, v)
    return y, *back(dy)


@pytest.mark.parametrize("length", [96, 128, 293])
def test_blocks_equal_one_piece(length):
    q, k, v, dy, mask, real = inputs(length)
    blocked = values_and_gradients(q, k, v, dy, mask, "blocked")
    plain = values_and_gradients(q, k, v, dy, mask, "xla")
    np.testing.assert_allclose(blocked[0] * real, plain[0] * real, atol=2e-6)
    for b, p in zip(blocked[1:], plain[1:], strict=True):
        np.testing.assert_allclose(b, p, atol=1e-5)


def test_one_piece_equals_a_loop_in_numpy():
    q, k, v, dy, mask, _ = inputs(20)
    y = values_and_gradients(q, k, v, dy, mask, "xla")[0]
    segments, positions = (np.asarray(a) for a in mask[:2])
    for b, t, n, g in np.ndindex(q.shape[:4]):
        seen = (segments[b] == segments[b, t]) & (positions[b] <= positions[b, t])
        scores = np.asarray(k[b, seen, n] @ q[b, t, n, g]) / np.sqrt(8)
        probabilities = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(y[b, t, n, g], probabilities @ np.asarray(v[b, seen, n]), atol=1e-5)


def test_grouped_queries_equal_repeated_heads():
    grouped = Attention(tiny.LLAMA, nnx.Rngs(0))
    full = Attention(dataclasses.replace(tiny.LLAMA, num_kv_heads=16), nnx.Rngs(1))
    d, k, g, h = grouped.query.shape
    full.query[...] = grouped.query[...].reshape(d, k * g, 1, h)
    full.out[...] = grouped.out[...].reshape(k * g, 1, h, d)
    full.key[...], full.value[...] = (jnp.repeat(w[...], g, axis=1) for w in (grouped.key, grouped.value))
    _, segments, positions = tiny.packed_rows(2, 16)
    x = jax.random.normal(jax.random.key(0), (2, 16, d))
    mask, turn = masks.packed(segments, positions), rotation(positions, h, 100.0)
    run = jax.jit(lambda attention: attention(x, mask, turn)[0])
    np.testing.assert_allclose(run(grouped), run(full), atol=1e-6)
