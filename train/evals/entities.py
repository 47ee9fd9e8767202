"""Entities in tags of words, counted whole: a kind, and the words from its first to its last.

B-X begins an entity of kind X and I-X goes on with it; O is of none. An I-X that no entity of its kind stands before
begins one too, as in the CoNLL-2000 script (conlleval) and seqeval's default mode.

Dims: B rows, T length, C classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def codes(names: Sequence[str]) -> np.ndarray | None:
    """int32 [C]: of each class 2 times the number of its kind (O: 0), and 1 more where it is a B. None where the names
    are no such tags."""
    tags = [name for name in names if name != "O"]
    if not tags or not all(tag.startswith(("B-", "I-")) for tag in tags):
        return None
    kinds = sorted({tag[2:] for tag in tags})
    return np.array([0 if n == "O" else 2 * (1 + kinds.index(n[2:])) + n.startswith("B-") for n in names], np.int32)


def counts(codes_C: np.ndarray, true_BTC, said_BTC, asked_BT, positions_BT) -> jax.Array:
    """[right, said, true] float32: how many entities were said rightly, were said, and are true.

    Args:
      true_BTC, said_BTC: 1 at the class of each token, else 0.
      asked_BT: bool: the token has a tag; others are passed over.
      positions_BT: int32 offset of each token in its segment, which no entity leaves.
    """
    kinds: list[jax.Array] = []
    starts: list[jax.Array] = []
    ends: list[jax.Array] = []
    for hot_BTC in (true_BTC, said_BTC):
        code_BT = (hot_BTC * codes_C).sum(-1).astype(jnp.int32)
        start_BT, end_BT = _spans(code_BT, int(codes_C.max()) + 1, asked_BT, positions_BT)
        kinds.append(code_BT // 2)
        starts.append(start_BT)
        ends.append(end_BT)
    right_BT = starts[0] & starts[1] & (kinds[0] == kinds[1]) & (ends[0] == ends[1])
    return jnp.stack([found.sum(dtype=jnp.float32) for found in (right_BT, starts[1], starts[0])])


def _spans(code_BT, count: int, asked_BT, positions_BT):
    """(whether an entity starts at a token; the next asked token behind it that goes on with none), [B, T] each."""
    length = code_BT.shape[1]
    place_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), code_BT.shape)
    # The code of the asked token before, found with its place as one number; of another segment it is no entity's.
    latest_BT = jax.lax.cummax(jnp.where(asked_BT, place_BT * count + code_BT, -1), axis=1)
    before_BT = jnp.pad(latest_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    before_BT = jnp.where(before_BT >= (place_BT - positions_BT) * count, before_BT % count, 0)
    inside_BT = asked_BT & (code_BT >= 2)
    start_BT = inside_BT & ((code_BT % 2 == 1) | (code_BT // 2 != before_BT // 2))
    stops_BT = jnp.where(asked_BT & ~(inside_BT & ~start_BT), place_BT, length)
    next_BT = jax.lax.cummin(stops_BT, axis=1, reverse=True)
    return start_BT, jnp.pad(next_BT[:, 1:], ((0, 0), (0, 1)), constant_values=length)
