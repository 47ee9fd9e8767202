"""Norms and dropout equal numpy's, activations equal PyTorch's, and noise equals transformers'."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.integrations.neftune import neftune_post_forward_hook

from model.layers import Norm, activate, add_bias, dropout, noisy
from tests.model import tiny


@pytest.mark.parametrize("name", ["rmsnorm", "layernorm"])
def test_norms(name):
    config = dataclasses.replace(tiny.GPT, norm=name, norm_epsilon=0.1)
    norm = Norm(config, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(2, 3, (2, 5, 32)), rng.normal(size=32), rng.normal(size=32)
    norm.scale[...] = jnp.asarray(scale, jnp.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * scale
    if name == "layernorm":
        norm.bias[...] = jnp.asarray(bias, jnp.float32)
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("silu", torch.nn.functional.silu),
        ("relu", torch.relu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_activations_and_their_gradients(name, reference):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = torch.tensor(x, requires_grad=True)
    reference(expected).sum().backward()
    y, back = jax.vjp(lambda x: activate(x, name), x)
    np.testing.assert_allclose(y, reference(torch.tensor(x)), atol=1e-6)
    np.testing.assert_allclose(back(jnp.ones_like(x))[0], expected.grad, atol=1e-5)


def test_bias_gradient_is_summed_in_float32():
    """In bfloat16, a sum of 8192 ones would stop at 256."""
    total = lambda bias, x: add_bias(x, nnx.Param(bias)).sum(dtype=jnp.float32)
    assert jax.jit(jax.grad(total))(jnp.zeros(4), jnp.zeros((16, 512, 4), jnp.bfloat16)).tolist() == [8192] * 4


def test_activations_in_bfloat16_are_rounded_once():
    """They are computed in float32, and rounded once, by 2^-8, from the float64 result (1e-6 is float32's error)."""
    x = jnp.linspace(-6, 6, 201, dtype=jnp.bfloat16)
    exact = torch.nn.functional.gelu(torch.tensor(np.asarray(x, np.float64)), approximate="tanh").numpy()
    np.testing.assert_allclose(np.asarray(activate(x, "gelu_tanh"), np.float64), exact, rtol=2**-8, atol=1e-6)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    y = np.asarray(dropout(jnp.full((100, 1000), 3.0), 0.3, jax.random.key(0)))
    assert abs((y == 0).mean() - 0.3) < 0.01
    assert abs(y.mean() - 3) < 0.03
    assert set(np.unique(y)) == {0, np.float32(3 / 0.7)}


def test_dropout_is_off_without_a_key_and_differs_between_keys():
    config = dataclasses.replace(tiny.LLAMA, dropout=0.5)
    model, plain = tiny.drawn(config), tiny.drawn(tiny.LLAMA)
    tokens = jnp.arange(16)[None]
    run = jax.jit(lambda model, key: model(tokens, key=key).x_BTD)
    np.testing.assert_array_equal(run(model, None), run(plain, None))
    first, again, second = (run(model, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_noise_is_as_large_as_transformers(dtype):
    """The noise is uniform with the bound alpha / sqrt(T D)."""
    x_BTD, alpha = np.zeros((40, 16, 32), np.float32), 5.0
    ours = np.asarray(noisy(jnp.asarray(x_BTD, dtype), alpha, jax.random.key(0)))
    assert ours.dtype == dtype
    module = SimpleNamespace(training=True, neftune_noise_alpha=alpha)
    theirs = neftune_post_forward_hook(module, None, torch.tensor(x_BTD)).numpy()
    bound = alpha / np.sqrt(16 * 32)
    for noise in (ours.astype(np.float32), theirs):
        assert 0.995 * bound < np.abs(noise).max() <= bound * 1.002  # bfloat16 rounds
        assert noise.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=0.02 * bound)


def test_noise_needs_a_key_and_differs_between_rows_and_keys():
    """In evaluation, a model gets no key and adds no noise."""
    config = dataclasses.replace(tiny.LLAMA, embedding_noise=5.0)
    inputs = tiny.drawn(config).inputs
    tokens_BT = jnp.zeros((2, 16), jnp.int32)
    run = lambda key: np.asarray(inputs(tokens_BT, tokens_BT, key=key))
    plain = run(None)
    np.testing.assert_array_equal(plain, np.asarray(inputs.tokens.table[...])[np.zeros((2, 16), int)])
    one, other = (run(jax.random.key(seed)) - plain for seed in (0, 1))
    assert np.abs(one).max() <= 5 / np.sqrt(16 * 32) + 1e-6
    assert np.abs(one - other).max() > 0.1 and np.abs(one[0] - one[1]).max() > 0.1
