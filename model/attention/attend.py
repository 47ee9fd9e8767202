"""Softmax attention, by platform.

    xla      one piece: any queries against any keys
    splash   a kernel of TPUs, and their choice: rows to themselves, without biases, whose parts of the length are
             multiples of 128
    cudnn    a kernel of GPUs, and their choice: as splash, in bfloat16, without a cap, heads of up to 128 features
    blocked  queries in blocks of 128 that skip the keys after them: a quarter less work at 256 tokens, towards half
             at long lengths. The choice for training on a CPU, where nothing fuses the two products.

Dims: B batch, T queries, S keys, K key/value heads, G queries per key/value head, H head_dim (of values it may
be another one, and is then that of the result).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import axes
from model.attention import flash
from model.attention.masks import Mask
from model.attention.positions import alibi_slopes
from model.attention.ring import ring
from model.platforms import table

BLOCK = 128
# Finite: a row with nothing to see must give numbers, not NaN.
MASKED = -1e30


class Rule(NamedTuple):
    """What is known of a layer's attention before it runs."""

    causal: bool = True
    window: int = 0  # positions seen; 0: all
    scale: float = 1.0  # of queries times keys
    softcap: float = 0.0  # 0: none
    alibi: bool = False
    implementation: str = "auto"  # by platform, or one of the above; xla where that one can't be
    context: str = "gather"  # where rows are split along their length: 'gather' all keys and values, or a 'ring'


def attend(q_BTKGH, k_BSKH, v_BSKH, mask: Mask, rule: Rule, *, aligned: bool, bias=None) -> jax.Array:
    """softmax(scale q k^T + bias) v under `mask`; scores and softmax in float32, the result in the dtype of q.

    Args:
      v_BSKH: None: the keys are the values too.
      aligned: queries and keys are the same rows in the same order, so a causal query never needs a later key.
      bias: added to the scores, [B, K, G, T, S] in float32, or None.
    """
    implementation = rule.implementation
    if implementation == "auto":
        implementation = table.here().attention
    q_BTKGH = q_BTKGH * rule.scale
    plain = aligned and bias is None and not rule.alibi
    split = axes.has_mesh() and jax.typeof(k_BSKH).sharding.spec[1] is not None
    if plain and not (split and rule.context == "ring"):
        if implementation == "splash" and flash.splash_fits(q_BTKGH.shape[1]):
            return flash.splash(rule, q_BTKGH, k_BSKH, v_BSKH, mask)
        if implementation == "cudnn" and flash.cudnn_fits(rule, q_BTKGH, v_BSKH):
            return flash.cudnn(rule, q_BTKGH, k_BSKH, v_BSKH, mask)
    if split:
        if rule.context == "ring" and aligned and bias is None:
            scores = lambda q, k, mask: _scores(rule, q, k, mask, slice(None), slice(None))
            return ring(scores, rule.causal, q_BTKGH, k_BSKH, v_BSKH, mask)
        k_BSKH, v_BSKH = (x if x is None else axes.place(x, "batch", None, "kv_heads", None) for x in (k_BSKH, v_BSKH))
    elif implementation == "blocked" and aligned and bias is None and not rule.softcap:
        return _blocked(rule, q_BTKGH, k_BSKH, v_BSKH, mask)
    everything = slice(None)
    scores = _scores(rule, q_BTKGH, k_BSKH, mask, everything, everything, bias)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(q_BTKGH.dtype)
    if v_BSKH is None:
        # With its dims in this order the product reads a cache that lies as keys do: in the other one, XLA's CPU
        # compiler transposes it at each token.
        return jnp.moveaxis(jnp.einsum("BKGTS,BSKH->BKGTH", probabilities, k_BSKH), 3, 1)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v_BSKH)


def probabilities(q_BTKGH, k_BSKH, mask: Mask, rule: Rule, bias=None) -> jax.Array:
    """float32 [B, N, T, S], N = K G: the softmax that `attend` multiplies values with, whole."""
    k_BSKH, everything = axes.place(k_BSKH, "batch", None, "kv_heads", None), slice(None)
    found_BKGTS = jax.nn.softmax(_scores(rule, q_BTKGH * rule.scale, k_BSKH, mask, everything, everything, bias))
    b, k, g, t, s = found_BKGTS.shape
    places = axes.out("batch", "kv_heads", "length", None, shape=(b, k, t, s))
    return jnp.reshape(found_BKGTS, (b, k * g, t, s), out_sharding=places)


def _scores(rule, q_BTKGH, k_BSKH, mask: Mask, queries: slice, keys: slice, bias=None):
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    if rule.softcap:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    if rule.alibi:
        slopes_KG = jnp.asarray(alibi_slopes(scores.shape[1] * scores.shape[2])).reshape(scores.shape[1:3])
        scores += slopes_KG[:, :, None, None] * mask.distance(queries, keys)[:, None, None]
    if bias is not None:
        scores += bias
    visible = mask.block(queries, keys, rule.causal, rule.window)
    return jnp.where(visible[:, None, None], scores, MASKED)


def _pieces(rule: Rule, length: int):
    """(queries, keys) of each block: without the keys that none of the block's queries sees."""
    for start in range(0, length, BLOCK):
        first = max(0, start - rule.window + 1) if rule.window else 0
        last = min(start + BLOCK, length) if rule.causal else length
        if rule.window and not rule.causal:
            last = min(start + BLOCK + rule.window - 1, length)
        yield slice(start, min(start + BLOCK, length)), slice(first, last)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(rule, q_BTKGH, k_BSKH, v_BSKH, mask):
    return _blocked_forward(rule, q_BTKGH, k_BSKH, v_BSKH, mask)[0]


def _blocked_forward(rule, q_BTKGH, k_BSKH, v_BSKH, mask):
    """Keeps exp(scores - max) for the gradient and divides the small result by its sum, not the large scores."""
    results, kept = [], []
    for queries, keys in _pieces(rule, q_BTKGH.shape[1]):
        scores = _scores(rule, q_BTKGH[:, queries], k_BSKH[:, keys], mask, queries, keys)
        exp_BKGTS = jnp.exp(scores - scores.max(-1, keepdims=True))
        inverse_BTKG1 = jnp.moveaxis(1 / exp_BKGTS.sum(-1), 3, 1)[..., None].astype(q_BTKGH.dtype)
        exp_BKGTS = exp_BKGTS.astype(v_BSKH.dtype)
        results.append(jnp.einsum("BKGTS,BSKH->BTKGH", exp_BKGTS, v_BSKH[:, keys]) * inverse_BTKG1)
        kept.append((exp_BKGTS, inverse_BTKG1))
    y_BTKGH = jnp.concatenate(results, axis=1)
    return y_BTKGH, (q_BTKGH, k_BSKH, v_BSKH, y_BTKGH, kept)


def _blocked_backward(rule, residuals, dy_BTKGH):
    q_BTKGH, k_BSKH, v_BSKH, y_BTKGH, kept = residuals
    dq, dk_BSKH, dv_BSKH = [], 0, 0
    for (queries, keys), (exp_BKGTS, inverse_BTKG1) in zip(_pieces(rule, q_BTKGH.shape[1]), kept, strict=True):
        dy = dy_BTKGH[:, queries] * inverse_BTKG1
        mean_BTKG = (dy * y_BTKGH[:, queries]).sum(-1, dtype=jnp.float32)
        dp_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", dy, v_BSKH[:, keys], preferred_element_type=jnp.float32)
        ds_BKGTS = (exp_BKGTS * (dp_BKGTS - jnp.moveaxis(mean_BTKG, 1, 3)[..., None])).astype(q_BTKGH.dtype)
        dq.append(jnp.einsum("BKGTS,BSKH->BTKGH", ds_BKGTS, k_BSKH[:, keys]))
        to_all = ((0, 0), (keys.start, k_BSKH.shape[1] - keys.stop), (0, 0), (0, 0))
        dk_BSKH += jnp.pad(jnp.einsum("BKGTS,BTKGH->BSKH", ds_BKGTS, q_BTKGH[:, queries]), to_all)
        dv_BSKH += jnp.pad(jnp.einsum("BKGTS,BTKGH->BSKH", exp_BKGTS, dy), to_all)
    return jnp.concatenate(dq, axis=1), dk_BSKH, dv_BSKH, None


_blocked.defvjp(_blocked_forward, _blocked_backward)
