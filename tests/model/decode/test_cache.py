"""Cached decoding equals the full pass, for any padding and any number of tokens at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from model.decode.cache import KVCache
from tests.model import tiny

TOKENS = np.random.default_rng(0).integers(0, 64, (3, 16), np.int32)


@jax.jit
def extended(model, cache, tokens, segments, positions):
    """Returns the logits after each of these tokens, and the cache with them."""
    cache, mask = cache.admit(segments, positions)
    states, cache, _ = model(tokens, segments, positions, mask=mask, cache=cache)
    return model.output(states).logits(), cache.advance(tokens.shape[1])


SHARED = dataclasses.replace(tiny.LLAMA, num_layers=4, share_groups=2, share_inner=2)
MODELS = tiny.BOTH | {"shared": SHARED}


@pytest.mark.parametrize(("name", "rows"), [(name, rows) for name in tiny.BOTH for rows in (1, 3)] + [("shared", 3)])
def test_cached_equals_full(name, rows):
    """Prompts of 5, 2 and 7 tokens, left-padded to 8, then pieces of 1, 1 and 3 tokens, in 20 slots."""
    model, lengths = tiny.drawn(MODELS[name]), np.array([5, 2, 7])[:rows]
    full = jax.jit(lambda model: model.logits(TOKENS))(model)
    cache, start = KVCache.create(model.config, rows, 20), lengths - 8
    for width in (8, 1, 1, 3):
        places = start[:, None] + np.arange(width)  # in the unpadded row; negative: padding
        tokens = np.take_along_axis(TOKENS[:rows], np.maximum(places, 0), axis=1)
        real = places >= 0
        logits, cache = extended(model, cache, tokens, real.astype(np.int32), np.maximum(places, 0).astype(np.int32))
        expected = np.take_along_axis(full[:rows], np.maximum(places, 0)[..., None], axis=1)
        np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-5, rtol=1e-5)
        start = start + width
    assert int(cache.index) == 13
