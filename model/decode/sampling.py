"""From logits to a token: greedy, temperature, top-k, top-p.

Nothing is sorted: bisection finds the smallest value to keep in a few passes over the vocabulary, while a sort costs
more than a small model's whole step. Then one uniform number per row selects the token, so a row's choice depends only
on its own key and logits, not on the rest of the batch.

Left out: repetition penalties, beam search, grammars.

Dims: B batch, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Settings(NamedTuple):
    """How to sample. Values may also be arrays [B], one per row. None disables a setting, which then costs nothing.

    The order is temperature, top-k, top-p (as in Hugging Face and vLLM).
    """

    temperature: float | jax.Array | None = None  # None: greedy
    top_k: int | jax.Array | None = None  # keep the k most likely tokens; on ties the lower id wins
    top_p: float | jax.Array | None = None  # keep the fewest tokens that together reach p (arXiv:1904.09751)


def settings(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Settings:
    """Returns Settings from flags: temperature 0 is greedy, top_k 0 and top_p 1 are off.

    Raises:
      ValueError: a value is out of range.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 0 (off) or the number of tokens to choose from")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must lie in (0, 1]")
    if temperature == 0:
        return Settings()
    return Settings(temperature, top_k or None, None if top_p == 1 else top_p)


def sample(logits_BV: jax.Array, keys_B: jax.Array, settings: Settings) -> jax.Array:
    """Samples token ids, int32 [B].

    Args:
      logits_BV: float32.
      keys_B: a random key per row; unused when greedy.
    """
    top_B1 = logits_BV.max(-1, keepdims=True)
    if settings.temperature is None:
        return _first(logits_BV == top_B1)
    weights_BV = kept_weights(logits_BV, settings)
    cumulative_BV = jnp.cumsum(weights_BV, axis=-1)
    target_B = jax.vmap(jax.random.uniform)(keys_B) * cumulative_BV[:, -1]
    possible_BV = weights_BV > 0
    reached_BV = possible_BV & (cumulative_BV > target_B[:, None])
    # Rounding can make a float32 cumsum decrease where nothing is added; then no possible token may reach the target.
    return _first(jnp.where(reached_BV.any(-1, keepdims=True), reached_BV, logits_BV == top_B1))


def logprob(logits_BV: jax.Array, tokens_B: jax.Array, settings: Settings) -> jax.Array:
    """Returns the log-probability of these tokens at the sampling temperature (1 if greedy), float32 [B]."""
    if settings.temperature is not None:
        logits_BV = logits_BV / _column(settings.temperature)
    ids_BV = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1)
    chosen_B = jnp.where(ids_BV == tokens_B[:, None], logits_BV, 0).sum(-1)
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def kept_weights(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """Returns unnormalized probabilities, float32 [B, V]: 1 for the most likely token, 0 for excluded ones."""
    logits_BV = logits_BV - logits_BV.max(-1, keepdims=True)
    weights_BV = jnp.exp(logits_BV / _column(settings.temperature))
    if settings.top_k is not None:
        weights_BV = _keep_top(weights_BV, jnp.ones_like(weights_BV), _column(settings.top_k))
    if settings.top_p is not None:
        goal_B1 = _column(settings.top_p) * weights_BV.sum(-1, keepdims=True)
        weights_BV = _keep_top(weights_BV, weights_BV, goal_B1)
    return weights_BV


def _keep_top(weights_BV, sizes_BV, goal_B1):
    """Keeps weights from the largest down (ties: lower id first) until their sizes reach the goal; zeroes the rest."""
    # Bit patterns of non-negative floats sort like the floats, so 31 bisections find the exact value.
    bits_BV = jax.lax.bitcast_convert_type(weights_BV, jnp.int32)
    size = lambda mask_BV: jnp.where(mask_BV, sizes_BV, 0).sum(-1, keepdims=True)

    def halve(i, least_B1):
        """`least` is the largest value known so far whose sizes at and above it reach the goal."""
        higher_B1 = least_B1 | (1 << (30 - i))
        return jnp.where(size(bits_BV >= higher_B1) >= goal_B1, higher_B1, least_B1)

    least_B1 = jax.lax.fori_loop(0, 31, halve, jnp.zeros_like(bits_BV[:, :1]))
    above_BV, ties_BV = bits_BV > least_B1, bits_BV == least_B1
    before_BV = size(above_BV) + (jnp.cumsum(ties_BV, axis=-1) - 1) * sizes_BV
    return jnp.where(above_BV | (ties_BV & (before_BV < goal_B1)), weights_BV, 0)


def _column(value):
    """Returns a number, or numbers [B], in a shape that broadcasts with [B, V]."""
    return jnp.asarray(value, jnp.float32)[..., None]


def _first(mask_BV: jax.Array) -> jax.Array:
    """Returns the lowest marked id, int32 [B]; the highest id if none is marked (NaN). Faster than argmax on a CPU."""
    ids_BV = jax.lax.broadcasted_iota(jnp.int32, mask_BV.shape, 1)
    last = mask_BV.shape[-1] - 1
    return jnp.where(mask_BV, ids_BV, last).min(-1)
