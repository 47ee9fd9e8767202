"""Softmax attention, by platform.

    xla      one piece: any queries against any keys
    blocked  queries in blocks of 128 that skip the keys after them: a quarter less work at 256 tokens, towards half
             at long lengths. The choice for training on a CPU, where nothing fuses the two products.

Dims: B batch, T queries, S keys, K key/value heads, G queries per key/value head, H head_dim.
"""

import jax
import jax.numpy as jnp

from model import axes
from model.masks import Mask

BLOCK = 128
# Finite: a row with nothing to see must give numbers, not NaN.
MASKED = -1e30


def attend(q_BTKGH, k_BSKH, v_BSKH, mask: Mask, *, aligned: bool, implementation: str = "auto") -> jax.Array:
    """softmax(q k^T / sqrt(H)) v under `mask`; scores and softmax in float32, the result in the dtype of q.

    Args:
      aligned: queries and keys are the same rows in the same order, so a query never needs a later key.
      implementation: 'xla', 'blocked', or 'auto' by platform.
    """
    if implementation == "auto":
        implementation = "blocked" if axes.platform() == "cpu" else "xla"
    q_BTKGH = q_BTKGH * q_BTKGH.shape[-1] ** -0.5
    if implementation == "blocked" and aligned:
        return _blocked(q_BTKGH, k_BSKH, v_BSKH, mask)
    scores = _scores(q_BTKGH, k_BSKH, mask, slice(None), slice(None))
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v_BSKH)


def _scores(q_BTKGH, k_BSKH, mask: Mask, queries: slice, keys: slice):
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    return jnp.where(mask.block(queries, keys)[:, None, None], scores, MASKED)


def _pieces(length: int):
    """(queries, keys) of each block: keys end where the block does."""
    return [(slice(start, start + BLOCK), slice(0, start + BLOCK)) for start in range(0, length, BLOCK)]


@jax.custom_vjp
def _blocked(q_BTKGH, k_BSKH, v_BSKH, mask):
    return _blocked_forward(q_BTKGH, k_BSKH, v_BSKH, mask)[0]


def _blocked_forward(q_BTKGH, k_BSKH, v_BSKH, mask):
    """Keeps exp(scores - max) for the gradient and divides the small result by its sum, not the large scores."""
    results, kept = [], []
    for queries, keys in _pieces(q_BTKGH.shape[1]):
        scores = _scores(q_BTKGH[:, queries], k_BSKH[:, keys], mask, queries, keys)
        exp_BKGTS = jnp.exp(scores - scores.max(-1, keepdims=True))
        inverse_BTKG1 = jnp.moveaxis(1 / exp_BKGTS.sum(-1), 3, 1)[..., None].astype(q_BTKGH.dtype)
        exp_BKGTS = exp_BKGTS.astype(v_BSKH.dtype)
        results.append(jnp.einsum("BKGTS,BSKH->BTKGH", exp_BKGTS, v_BSKH[:, keys]) * inverse_BTKG1)
        kept.append((exp_BKGTS, inverse_BTKG1))
    y_BTKGH = jnp.concatenate(results, axis=1)
    return y_BTKGH, (q_BTKGH, k_BSKH, v_BSKH, y_BTKGH, kept)


def _blocked_backward(residuals, dy_BTKGH):
    q_BTKGH, k_BSKH, v_BSKH, y_BTKGH, kept = residuals
    dq, dk_BSKH, dv_BSKH = [], 0, 0
    for (queries, keys), (exp_BKGTS, inverse_BTKG1) in zip(_pieces(q_BTKGH.shape[1]), kept, strict=True):
        dy = dy_BTKGH[:, queries] * inverse_BTKG1
        mean_BTKG = (dy * y_BTKGH[:, queries]).sum(-1, dtype=jnp.float32)
        dp_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", dy, v_BSKH[:, keys], preferred_element_type=jnp.float32)
        ds_BKGTS = (exp_BKGTS * (dp_BKGTS - jnp.moveaxis(mean_BTKG, 1, 3)[..., None])).astype(q_BTKGH.dtype)
        dq.append(jnp.einsum("BKGTS,BSKH->BTKGH", ds_BKGTS, k_BSKH[:, keys]))
        to_all = ((0, 0), (0, k_BSKH.shape[1] - dp_BKGTS.shape[-1]), (0, 0), (0, 0))
        dk_BSKH += jnp.pad(jnp.einsum("BKGTS,BTKGH->BSKH", ds_BKGTS, q_BTKGH[:, queries]), to_all)
        dv_BSKH += jnp.pad(jnp.einsum("BKGTS,BTKGH->BSKH", exp_BKGTS, dy), to_all)
    return jnp.concatenate(dq, axis=1), dk_BSKH, dv_BSKH, None


_blocked.defvjp(_blocked_forward, _blocked_backward)
