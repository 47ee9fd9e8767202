"""Blocked attention equals plain attention and numpy, with gradients; grouped heads equal repeated ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.attention import masks
from model.attention.attend import Rule, attend
from model.attention.grouped import Attention, Context
from model.attention.positions import rotation
from model.config import Rope
from tests.model import tiny


def inputs(length, batch=2, heads=2, group=2, dim=8):
    rng = np.random.default_rng(length)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    _, segments, positions = tiny.packed_rows(batch, length, seed=length)
    real = jnp.asarray(segments > 0)[:, :, None, None, None]  # the output at padding does not matter
    q, k, v = draw(batch, length, heads, group, dim), draw(batch, length, heads, dim), draw(batch, length, heads, dim)
    return q, k, v, draw(*q.shape) * real, masks.packed(jnp.asarray(segments), jnp.asarray(positions)), real


RULES = {
    "causal": Rule(scale=0.35),
    "window": Rule(scale=0.35, window=30),
    "one block": Rule(scale=0.35, window=1),
    "both sides": Rule(scale=0.35, causal=False),
    "window on both sides": Rule(scale=0.35, causal=False, window=30),
    "alibi": Rule(scale=0.35, alibi=True),
}


@functools.partial(jax.jit, static_argnames="rule")
def values_and_gradients(q, k, v, dy, mask, rule):
    y, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask, rule, aligned=True), q, k, v)
    return y, *back(dy)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("length", [128, 293])
def test_blocks_equal_one_piece(length, rule):
    q, k, v, dy, mask, real = inputs(length)
    blocked = values_and_gradients(q, k, v, dy, mask, rule._replace(implementation="blocked"))
    plain = values_and_gradients(q, k, v, dy, mask, rule._replace(implementation="xla"))
    np.testing.assert_allclose(blocked[0] * real, plain[0] * real, atol=2e-6)
    for b, p in zip(blocked[1:], plain[1:], strict=True):
        np.testing.assert_allclose(b, p, atol=1e-5)


@pytest.mark.parametrize("name", [*RULES, "softcap"])
def test_one_piece_equals_a_loop_in_numpy(name):
    rule = RULES.get(name, Rule(scale=0.35, softcap=0.7))
    rule = rule._replace(window=4) if rule.window else rule
    q, k, v, dy, mask, _ = inputs(20)
    y = values_and_gradients(q, k, v, dy, mask, rule._replace(implementation="xla"))[0]
    segments, positions = (np.asarray(a) for a in mask[:2])
    for b, t, n, g in np.ndindex(q.shape[:4]):
        distance = positions[b] - positions[b, t]
        seen = (segments[b] == segments[b, t]) & ((distance <= 0) | (not rule.causal))
        seen &= (np.abs(distance) < rule.window) | (not rule.window)
        scores = np.asarray(k[b, seen, n] @ q[b, t, n, g]) * 0.35
        if rule.softcap:
            scores = 0.7 * np.tanh(scores / 0.7)
        if rule.alibi:  # 4 heads: 2^-2, 2^-4, 2^-6, 2^-8
            scores = scores + distance[seen] * 0.25 ** (n * 2 + g + 1)
        probabilities = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(y[b, t, n, g], probabilities @ np.asarray(v[b, seen, n]), atol=1e-5)


def test_grouped_queries_equal_repeated_heads():
    grouped = Attention(tiny.LLAMA, nnx.Rngs(0), "global", causal=True)
    full = Attention(dataclasses.replace(tiny.LLAMA, num_kv_heads=16), nnx.Rngs(1), "global", causal=True)
    d, k, g, h = grouped.query.shape
    full.query[...] = grouped.query[...].reshape(d, k * g, 1, h)
    full.out[...] = grouped.out[...].reshape(k * g, 1, h, d)
    full.key[...], full.value[...] = (jnp.repeat(w[...], g, axis=1) for w in (grouped.key, grouped.value))
    _, segments, positions = tiny.packed_rows(2, 16)
    x = jax.random.normal(jax.random.key(0), (2, 16, d))
    context = Context(masks.packed(segments, positions), {"global": rotation(positions, h, Rope(theta=100.0))})
    run = jax.jit(lambda attention: attention(x, context)[0])
    np.testing.assert_allclose(run(grouped), run(full), atol=1e-6)
