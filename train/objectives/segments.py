"""Sums over the segments of packed rows, and over pairs of segments that answer the same prompt.

A row holds several examples, and an example of several answers holds a segment for each (data/batch.py: group_ids,
ranks). A mesh may split and reorder the length, so nothing here relies on the order of tokens: every token is compared
with every segment id, and every segment with every other one. This happens for some ids at a time, because all at once
would need an array [B, T, T].

Dims: B rows, T length, S segments of a row (at most T), C some of them, n chunks.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

_CHUNK = 16  # segments that are compared at a time


class Segments(NamedTuple):
    """The segments of each row, [B, S]. A segment that a row lacks is in group 0."""

    group_BS: jax.Array  # the example, from 1; 0: an example of one segment
    rank_BS: jax.Array  # the place in its example, from 0, the best one
    sums_BS: dict[str, jax.Array]  # sums over its tokens


def segments(batch: Mapping[str, jax.Array], sums_BT: dict[str, jax.Array]) -> Segments:
    """Returns the segments of a batch, with the sums of these values over their tokens; differentiable.

    A batch without `group_ids` and `ranks` has examples of one segment each.
    """
    ids_BT = batch["segment_ids"]

    known_BT = [batch.get(name, jnp.zeros_like(ids_BT)) for name in ("group_ids", "ranks")]

    @jax.checkpoint
    def some(ids_C, sums_BT):
        inside_BTC = ids_BT[..., None] == ids_C
        known = [jnp.where(inside_BTC, of_token[..., None], 0).max(1) for of_token in known_BT]
        return known, {name: jnp.where(inside_BTC, v_BT[..., None], 0).sum(1) for name, v_BT in sums_BT.items()}

    length = ids_BT.shape[1]
    ids_nC = jnp.arange(1, -(-length // _CHUNK) * _CHUNK + 1).reshape(-1, _CHUNK)
    found = jax.lax.map(lambda ids_C: some(ids_C, sums_BT), ids_nC)
    (group_BS, rank_BS), sums_BS = jax.tree.map(_joined, found)
    return Segments(group_BS, rank_BS, sums_BS)


def spread(batch: Mapping[str, jax.Array], values_BS: jax.Array) -> jax.Array:
    """Returns the value of each token's segment, [B, T], and 0 on padding; differentiable."""
    ids_BT = batch["segment_ids"]

    @jax.checkpoint
    def add(found_BT, chunk):
        ids_C, values_BC = chunk
        inside_BTC = ids_BT[..., None] == ids_C
        return found_BT + jnp.where(inside_BTC, values_BC[:, None], 0).sum(-1), None

    ids_nC = jnp.arange(1, values_BS.shape[1] + 1).reshape(-1, _CHUNK)
    return jax.lax.scan(add, 0.0 * ids_BT, (ids_nC, _chunks(values_BS)))[0]


def over_pairs(measure: Callable, found: Segments, counted_BS: jax.Array, *values_BS: jax.Array) -> dict:
    """Returns sums over all pairs of a better and a worse segment of an example, and `pairs`, the sum of their weights.

    The pairs of an example have a weight of 1 together, so a list of many answers counts as much as a pair
    (InstructGPT, arXiv:2203.02155, equation 1). Segments of equal rank are no pair.

    Args:
      measure: (better [B, C, 1], worse [B, 1, S]) for each value -> a dict of [..., B, C, S], or of lists of them.
      found: the segments.
      counted_BS: which segments count, bool.
      values_BS: values of the segments.
    """
    everything = (jnp.where(counted_BS, found.group_BS, 0), found.rank_BS)

    def pairs(better, worse):
        (group_BC, rank_BC), (group_BS, rank_BS) = better, worse
        same_BCS = (group_BC[..., None] == group_BS[:, None]) & (group_BC[..., None] > 0)
        return same_BCS, same_BCS & (rank_BC[..., None] < rank_BS[:, None])

    won_BS = _joined(jax.lax.map(lambda some: pairs(some, everything)[1].sum(-1), _chunks(everything)))
    won_BS = won_BS.astype(jnp.float32)
    of_example = lambda some: jnp.where(pairs(some, everything)[0], won_BS[:, None], 0).sum(-1)
    weight_BS = 1 / jnp.maximum(_joined(jax.lax.map(of_example, _chunks(everything))), 1)

    @jax.checkpoint
    def measured(some, weight_BC, values_BC, values_BS):
        share_BCS = jnp.where(pairs(some, everything)[1], weight_BC[..., None], 0)
        rows = measure(*((a[..., None], b[:, None]) for a, b in zip(values_BC, values_BS, strict=True)))
        total = lambda value: (share_BCS * jnp.where(share_BCS > 0, value, 0)).sum((-3, -2, -1))
        sums = jax.tree.map(total, rows)
        return sums | {"pairs": share_BCS.sum()}

    run = lambda chunk: measured(*chunk, values_BS)
    return jax.tree.map(lambda a: a.sum(0), jax.lax.map(run, _chunks((everything, weight_BS, values_BS))))


def over_choices(found: Segments, counted_BS: jax.Array, scores_BS: jax.Array) -> jax.Array:
    """Returns the sum over examples of the mean over their choices of -log p(choice), by Plackett and Luce.

    A list is read as a series of choices: the best answer of all, then the best of the rest, and so on. With scores s,
    answer i is chosen among those of its rank or a worse one with probability exp(s_i) / sum_j exp(s_j) (Plackett,
    1975; for answers of equal rank, Breslow's form). Every answer that is better than another one is a choice. A pair
    gives the loss of Bradley and Terry.

    Args:
      found: the segments.
      counted_BS: which segments count, bool.
      scores_BS: float32.
    """
    everything = (jnp.where(counted_BS, found.group_BS, 0), found.rank_BS)

    def same(some):
        return (some[0][..., None] == everything[0][:, None]) & (some[0][..., None] > 0)

    def is_choice(some):
        return (same(some) & (some[1][..., None] < everything[1][:, None])).any(-1)

    choice_BS = _joined(jax.lax.map(is_choice, _chunks(everything)))
    of_example = lambda some: jnp.where(same(some), choice_BS[:, None], False).sum(-1)
    count_BS = _joined(jax.lax.map(of_example, _chunks(everything)))

    @jax.checkpoint
    def measured(some, scores_BC, choice_BC, count_BC, scores_BS):
        among_BCS = same(some) & (some[1][..., None] <= everything[1][:, None])
        logits_BCS = jnp.where(among_BCS, scores_BS[:, None], -jnp.inf)
        # Of a segment in no example, nothing is among: its own score keeps logsumexp and its gradient finite.
        logits_BCS = jnp.where(choice_BC[..., None], logits_BCS, 0)
        nll_BC = jax.nn.logsumexp(logits_BCS, axis=-1) - scores_BC
        return jnp.where(choice_BC, nll_BC / jnp.maximum(count_BC, 1), 0).sum()

    chunks = _chunks((everything, scores_BS, choice_BS, count_BS))
    return jax.lax.map(lambda chunk: measured(*chunk, scores_BS), chunks).sum()


def share_won(z: jax.Array) -> jax.Array:
    """Returns 1 where a better answer's score is larger by z > 0, 1/2 where the scores are equal, and 0 elsewhere."""
    return (jnp.sign(z) + 1) / 2


def _chunks(tree_BS):
    """[B, S] -> [n, B, C]."""
    return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, _CHUNK), 1, 0), tree_BS)


def _joined(a_nBC: jax.Array) -> jax.Array:
    """[n, B, C] -> [B, S]."""
    a_BnC = jnp.moveaxis(a_nBC, 0, 1)
    return a_BnC.reshape(a_BnC.shape[0], -1)
