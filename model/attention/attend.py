"""Softmax attention, with a kernel for each platform.

    xla      one einsum: any queries against any keys
    splash   a kernel for TPUs, their default: self-attention without biases, if each device's length is a multiple of
             128
    cudnn    a kernel for GPUs, their default: as splash, in bfloat16, without a soft cap, head_dim up to 128
    blocked  blocks of 128 queries, each without the keys after it: a quarter less work at 256 tokens, approaching half
             at long lengths. The default for training on a CPU, where nothing fuses the two matmuls.

Dims: B batch, T queries, S keys, K key/value heads, G queries per key/value head, H head_dim (values and the result may
have another one).
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
# Finite: a row without any visible key must give numbers instead of NaN.
MASKED = -1e30


class Rule(NamedTuple):
    """The properties of a layer's attention that are known before it runs."""

    causal: bool = True
    window: int = 0  # visible positions; 0: all
    scale: float = 1.0  # multiplies query-key products
    softcap: float = 0.0  # 0: none
    alibi: bool = False
    implementation: str = "auto"  # auto: by platform; otherwise one of the above, or xla where it is not supported
    context: str = "gather"  # if the length is split: 'gather' all keys and values, or pass them around a 'ring'


def attend(q_BTKGH, k_BSKH, v_BSKH, mask: Mask, rule: Rule, *, aligned: bool, bias=None) -> jax.Array:
    """Returns softmax(scale q k^T + bias) v under `mask`, in q's dtype; scores and softmax are float32.

    Args:
      v_BSKH: None: the keys are also the values.
      aligned: queries and keys are the same rows in the same order, so a causal query never needs a later key.
      bias: added to the scores, float32 [B, K, G, T, S], or None.
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
        # In this order of dims, the product reads the cache in its own layout. In the other order, XLA's CPU compiler
        # would transpose the cache for each token.
        return jnp.moveaxis(jnp.einsum("BKGTS,BSKH->BKGTH", probabilities, k_BSKH), 3, 1)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v_BSKH)


def probabilities(q_BTKGH, k_BSKH, mask: Mask, rule: Rule, bias=None) -> jax.Array:
    """Returns `attend`'s whole softmax, float32 [B, N, T, S] with N = K G."""
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
    """Yields (queries, keys) of each block, without keys that none of the block's queries sees."""
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
    """Saves exp(scores - max) for the backward pass; divides the small result by its sum, not the large scores."""
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
