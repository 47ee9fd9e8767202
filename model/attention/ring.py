"""Ring attention (arXiv:2310.01889), where rows are split along their length over the mesh axis `context`.

Keys and values are passed around the devices, so that no device ever holds all of them. Segments and positions travel
with the keys and define the mask, so tokens may be in any order. Pairs of query and key pieces without a visible key
are skipped, because the keys are later or belong to other documents. Rows in zigzag order (axes.zigzag) balance the
work of the devices.

Dims: B batch, T queries and keys of a device, P queries or keys of a piece, K key/value heads, G queries per key/value
head, H head_dim.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import axes
from model.attention.masks import Mask

AXIS = "context"
PIECE = 1024  # maximum tokens of a piece: scores of PIECE x PIECE exist at a time


class Keys(NamedTuple):
    """The arrays that travel."""

    k_BTKH: jax.Array
    v_BTKH: jax.Array
    segments_BT: jax.Array
    positions_BT: jax.Array


def ring(scores, causal: bool, q_BTKGH, k_BTKH, v_BTKH, mask: Mask) -> jax.Array:
    """Returns softmax(scores) v over all keys of the row.

    Args:
      scores: (q, k, mask) -> float32 [B, K, G, P, P], with a very low value where the mask is False.
      causal: queries see no key of their segment with a later position.
      mask: of all tokens, with unsplit keys.
    """
    rows = axes.out("batch", "length")
    split = lambda ids_BT: axes.place(ids_BT, "batch", "length")
    ids = (mask.q_segments_BT, mask.q_positions_BT, mask.kv_segments_BS, mask.kv_positions_BS)
    arrays = (q_BTKGH, k_BTKH, v_BTKH, *map(split, ids))
    heads = axes.out("batch", "length", "kv_heads")
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(
        functools.partial(_ring, scores, causal),
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        in_specs=(heads, heads, heads, rows, rows, rows, rows),
        out_specs=heads,
    )(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(scores, causal, q_BTKGH, k_BTKH, v_BTKH, *ids):
    return _forward(scores, causal, q_BTKGH, k_BTKH, v_BTKH, *ids)[0]


def _forward(scores, causal, q_BTKGH, k_BTKH, v_BTKH, *ids):
    queries = _cut((q_BTKGH, *ids[:2]))
    count, b, p, k, g, _ = queries[0].shape
    values = v_BTKH.shape[-1]

    def meet(sums, query, key):
        q, k, v, mask = _met(query, key)
        top, total, y = sums
        s = scores(q, k, mask)
        new = jnp.maximum(top, s.max(-1))
        weights, old = jnp.exp(s - new[..., None]), jnp.exp(top - new)
        more = jnp.einsum("BKGTS,BSKH->BKGTH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return new, total * old + weights.sum(-1), y * old[..., None] + more

    def one_device(sums, keys):
        def piece(_, item):
            query, sums = item
            meet_if = lambda sums, key: (_if_seen(causal, query, key, lambda: meet(sums, query, key), sums), None)
            return None, jax.lax.scan(meet_if, sums, keys)[0]

        return jax.lax.scan(piece, None, (queries, sums))[1]

    like = functools.partial(jnp.full_like, q_BTKGH, dtype=jnp.float32)
    sums = (like(-jnp.inf, shape=(count, b, k, g, p)), like(0, shape=(count, b, k, g, p)))
    sums = (jnp.maximum(sums[0], -1e37), sums[1], like(0, shape=(count, b, k, g, p, values)))

    def turn(carry, _):
        sums, keys = carry
        return (one_device(sums, _cut(keys)), _pass(keys)), None

    keys = Keys(k_BTKH, v_BTKH, *ids[2:])
    (sums, keys), _ = jax.lax.scan(turn, (sums, keys), length=axes.size(AXIS) - 1)
    top, total, y = one_device(sums, _cut(keys))
    total = jnp.maximum(total, 1e-37)
    y_BTKGH = _joined(jnp.moveaxis(y / total[..., None], 4, 2)).astype(q_BTKGH.dtype)
    return y_BTKGH, (q_BTKGH, k_BTKH, v_BTKH, ids, y_BTKGH, top + jnp.log(total))


def _backward(scores, causal, residuals, dy_BTKGH):
    q_BTKGH, k_BTKH, v_BTKH, ids, y_BTKGH, log_sums = residuals
    mean_BTKG = (dy_BTKGH.astype(jnp.float32) * y_BTKGH).sum(-1)
    queries = (*_cut((q_BTKGH, *ids[:2])), *_cut((dy_BTKGH, mean_BTKG)), log_sums)

    def meet(grads, query, key):
        q, k, v, mask = _met(query[:3], key)
        dy, mean, log_sum = query[3:]
        s, back = jax.vjp(lambda q, k: scores(q, k, mask), q, k)
        weights = jnp.exp(s - log_sum[..., None])
        dv = jnp.einsum("BKGTS,BTKGH->BSKH", weights.astype(dy.dtype), dy, preferred_element_type=jnp.float32)
        dweights = jnp.einsum("BTKGH,BSKH->BKGTS", dy, v, preferred_element_type=jnp.float32)
        dq, dk = back(weights * (dweights - jnp.moveaxis(mean, 1, 3)[..., None]))
        return jax.tree.map(lambda old, new: old + new, grads, (dq, dk, dv))

    def one_device(dq, keys, dkeys):
        def piece(dkeys, item):
            query, dq = item

            def meet_if(dq, pair):
                key, (dk, dv) = pair
                run = lambda: meet((dq, dk, dv), query, key)
                dq, dk, dv = _if_seen(causal, query, key, run, (dq, dk, dv))
                return dq, (dk, dv)

            dq, dkeys = jax.lax.scan(meet_if, dq, (keys, dkeys))
            return dkeys, dq

        return jax.lax.scan(piece, dkeys, (queries, dq))

    def turn(carry, _):
        dq, keys, dkeys = carry
        dkeys, dq = one_device(dq, _cut(keys), dkeys)
        return (dq, *_pass((keys, dkeys))), None

    zeros = lambda a: jnp.zeros_like(a, jnp.float32)
    start = (zeros(queries[0]), Keys(k_BTKH, v_BTKH, *ids[2:]), jax.tree.map(zeros, _cut((k_BTKH, v_BTKH))))
    # After the last turn, every gradient is on the device of its keys.
    (dq, _, dkeys), _ = jax.lax.scan(turn, start, length=axes.size(AXIS))
    dk, dv = map(_joined, dkeys)
    dtype = lambda d, a: d.astype(a.dtype)
    return dtype(_joined(dq), q_BTKGH), dtype(dk, k_BTKH), dtype(dv, v_BTKH), *(None,) * len(ids)


_ring.defvjp(_forward, _backward)


def _met(query, key):
    q_BPKGH, *ids = query[:3]
    return q_BPKGH, key.k_BTKH, key.v_BTKH, Mask(*ids, key.segments_BT, key.positions_BT)


def _if_seen(causal, query, key: Keys, run, otherwise):
    """Returns `run()` if some query may see some key, else `otherwise`."""
    segments, positions = query[1:3]
    first = lambda ids: (ids.min(), ids.max())
    (q_low, q_high), (k_low, k_high) = first(segments), first(key.segments_BT)
    seen = (q_low <= k_high) & (k_low <= q_high)
    if causal:  # at least one key is not after the last query
        last = jnp.where(segments == segments.max(1, keepdims=True), positions, -1).max(1)
        begin = jnp.where(
            key.segments_BT == key.segments_BT.min(1, keepdims=True), key.positions_BT, jnp.iinfo(jnp.int32).max
        ).min(1)
        q_end, k_begin = segments.max(1), key.segments_BT.min(1)
        seen &= ((k_begin < q_end) | ((k_begin == q_end) & (begin <= last))).any()
    return jax.lax.cond(seen, run, lambda: otherwise)


def _pieces(length: int) -> int:
    """Returns the number of pieces, at least two, because zigzag order has an early half and a late half."""
    return next(n for n in range(max(2, math.ceil(length / PIECE)), length + 1) if length % n == 0)


def _cut(tree):
    """[B, T, ...] -> [pieces, B, P, ...]."""

    def cut(a):
        n = _pieces(a.shape[1])
        return jnp.swapaxes(a.reshape(a.shape[0], n, a.shape[1] // n, *a.shape[2:]), 0, 1)

    return jax.tree.map(cut, tree)


def _joined(a):
    """Inverts `_cut`."""
    return jnp.swapaxes(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])


def _pass(tree):
    n = axes.size(AXIS)
    return jax.lax.ppermute(tree, AXIS, [(device, (device + 1) % n) for device in range(n)])
