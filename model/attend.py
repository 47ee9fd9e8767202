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
    length = q_BTKGH.shape[1]
    if implementation == "xla" or not aligned or length <= BLOCK:
        return _attend(q_BTKGH, k_BSKH, v_BSKH, mask.block(slice(None), slice(None)))
    blocks = []
    for start in range(0, length, BLOCK):
        queries, keys = slice(start, start + BLOCK), slice(0, start + BLOCK)
        blocks.append(_attend(q_BTKGH[:, queries], k_BSKH[:, keys], v_BSKH[:, keys], mask.block(queries, keys)))
    return jnp.concatenate(blocks, axis=1)


def _attend(q_BTKGH, k_BSKH, v_BSKH, mask_BTS):
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v_BSKH)
