"""Cached decoding equals the full pass; greedy, top-k and top-p by their definitions; seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.config import ModelConfig
from model.decode import sampling
from model.decode.generate import generate
from model.families import Decoder

SHARED = dict(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=64, max_length=64, init_std=0.3)
CONFIGS = {
    "rotary": ModelConfig(**SHARED, num_kv_heads=2, dtype="float32"),
    "learned": ModelConfig(**SHARED, norm="layernorm", position="learned", bias=True, tied=True, dtype="float32"),
}
PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22]]


def full_pass(model):
    """Next-token logits after a list of tokens, from the whole sequence each time; one compiled shape."""
    run = jax.jit(lambda model, tokens: model.logits(tokens))

    def after(tokens):
        padded = np.zeros((1, 32), np.int32)  # what follows a token cannot change its logits
        padded[0, : len(tokens)] = tokens
        return np.asarray(run(model, padded)[0, len(tokens) - 1])

    return after


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_is_the_argmax_of_full_passes(kind):
    """Rows of different lengths, so every row but one is padded; a cache that is wrong anywhere changes tokens."""
    model = Decoder(CONFIGS[kind], nnx.Rngs(1))
    out = generate(model, PROMPTS, jax.random.key(0), max_new_tokens=12)
    after = full_pass(model)
    for prompt, tokens in zip(PROMPTS, out.tokens, strict=True):
        sequence = list(prompt)
        for token in tokens:
            assert token == after(sequence).argmax()
            sequence.append(int(token))
    assert len({tuple(row) for row in out.tokens.tolist()}) == len(PROMPTS)


def test_a_row_does_not_depend_on_the_others():
    model = Decoder(CONFIGS["rotary"], nnx.Rngs(1))
    settings = sampling.settings(temperature=1.0)
    together = generate(model, PROMPTS, jax.random.key(3), max_new_tokens=8, settings=settings)
    alone = generate(model, PROMPTS[:1], jax.random.key(3), max_new_tokens=8, settings=settings)
    np.testing.assert_array_equal(together.tokens[0], alone.tokens[0])


def test_seeds():
    model = Decoder(CONFIGS["rotary"], nnx.Rngs(1))
    settings = sampling.settings(temperature=1.5)
    one, two, other = (
        generate(model, PROMPTS, jax.random.key(seed), max_new_tokens=12, settings=settings).tokens
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_ends_at_the_end_token():
    model = Decoder(CONFIGS["rotary"], nnx.Rngs(1))
    free = generate(model, PROMPTS, jax.random.key(0), max_new_tokens=12)
    eos = int(free.tokens[0][3])
    first = free.tokens[0].tolist().index(eos)
    ended = generate(model, PROMPTS, jax.random.key(0), max_new_tokens=12, eos_id=eos)
    assert ended.lengths[0] == first + 1
    np.testing.assert_array_equal(ended.tokens[0][: first + 1], free.tokens[0][: first + 1])


def test_too_long_for_the_context():
    model = Decoder(CONFIGS["rotary"], nnx.Rngs(1))
    with pytest.raises(ValueError, match="64"):
        generate(model, PROMPTS, jax.random.key(0), max_new_tokens=60)


def allowed(logits, temperature, top_k, top_p):
    """The tokens that may come, by brute force: of the k likeliest, the fewest that together reach top_p."""
    order = np.argsort(-logits, kind="stable")[: top_k or len(logits)]
    p = np.exp(logits[order] / temperature - (logits[order] / temperature).max())
    p = p / p.sum()
    return set(order[: int(np.searchsorted(np.cumsum(p), top_p)) + 1].tolist())


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 0.6), (0.7, 5, 1.0), (1.3, 6, 0.5), (1.0, 1, 1.0)])
def test_top_k_and_top_p(temperature, top_k, top_p):
    """Draws fall in the set that the definitions allow, and reach all of it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=12).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    settings = sampling.settings(temperature, top_k, top_p)
    drawn = sampling.sample(jnp.broadcast_to(jnp.asarray(logits), (4000, 12)), keys, settings)
    assert set(np.asarray(drawn).tolist()) == allowed(logits, temperature, top_k, top_p)
