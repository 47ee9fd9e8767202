"""Sampling keeps the same tokens as a sort in numpy, with the right frequencies, and refuses wrong settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.decode import sampling

LOGITS = np.random.default_rng(0).normal(0, 2, (8, 40)).astype(np.float32)
TIED = np.round(LOGITS)  # bfloat16 also gives many equally likely tokens


def kept(logits, temperature, top_k, top_p):
    """Follows the definitions for one row: sort, take the first k, then the fewest whose sum reaches p."""
    order = np.argsort(-logits, kind="stable")[: top_k or len(logits)]
    weights = np.exp((logits[order] - logits.max()) / temperature)
    before = np.cumsum(weights) - weights
    return order[before < top_p * weights.sum()] if top_p < 1 else order


@pytest.mark.parametrize("logits", [LOGITS, TIED], ids=["distinct", "tied"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_what_is_kept(logits, temperature):
    find = jax.jit(sampling.kept_weights)
    for top_k in (0, 1, 2, 7, 40, 100):
        for top_p in (1e-6, 0.31, 0.77, 0.999, 1.0):
            weights = np.asarray(find(logits, sampling.settings(temperature, top_k, top_p)))
            for row, found in zip(logits, weights, strict=True):
                wanted = kept(row, temperature, top_k, top_p)
                assert set(np.flatnonzero(found)) == set(wanted), (top_k, top_p)
                np.testing.assert_allclose(found[wanted], np.exp((row - row.max()) / temperature)[wanted], rtol=1e-5)


def test_each_row_may_have_settings_of_its_own():
    top_k, top_p, temperature = np.arange(1, 9), np.linspace(0.2, 0.9, 8), np.linspace(0.5, 2, 8)
    together = sampling.kept_weights(LOGITS, sampling.Settings(temperature, top_k, top_p))
    for row in range(8):
        settings = sampling.Settings(temperature[row], top_k[row], top_p[row])
        alone = sampling.kept_weights(LOGITS[row : row + 1], settings)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6)


def test_tokens_come_as_often_as_they_should():
    settings, draws = sampling.settings(temperature=1.5, top_k=12, top_p=0.95), 40_000
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = jax.jit(sampling.sample)(np.broadcast_to(LOGITS[:1], (draws, 40)), keys, settings)
    weights = np.asarray(sampling.kept_weights(LOGITS[:1], settings))[0]
    expected, counts = weights / weights.sum(), np.bincount(drawn, minlength=40)
    assert (counts[expected == 0] == 0).all()
    spread = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 4.5 * spread).all()


@pytest.mark.parametrize("settings", [(0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 0, 1e-6), (1e-6, 0, 1.0)])
def test_what_amounts_to_greedy(settings):
    """Temperature 0, top-k 1, a tiny top-p and a tiny temperature all choose one token.

    Of equally likely tokens it is the lowest id; only the last setting samples between them.
    """
    keys = jax.random.split(jax.random.key(0), 8)
    logits = LOGITS if settings[0] == 1e-6 else TIED
    drawn = sampling.sample(jnp.asarray(logits), keys, sampling.settings(*settings))
    np.testing.assert_array_equal(drawn, logits.argmax(-1))


def test_numbers_that_are_none_give_a_token_all_the_same():
    drawn = sampling.sample(jnp.full((1, 5), jnp.nan), jax.random.split(jax.random.key(0), 1), sampling.settings(1.0))
    assert 0 <= int(drawn[0]) < 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(top_k=-2), "top_k is -2"),
        (dict(top_p=0.0), "top_p is 0.0"),
        (dict(top_p=1.1), "top_p is 1.1"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        sampling.settings(**settings)
