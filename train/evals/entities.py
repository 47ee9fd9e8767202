"""Counts whole entities in word tags (IOB). An entity is right if its kind, its first and its last word are right.

B-X begins an entity of kind X, I-X continues it, and O is outside of any entity. An I-X without an entity of kind X
directly before it begins an entity too, as in the CoNLL-2000 script (conlleval) and in seqeval's default mode.

Dims: B rows, T length, C classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def codes(names: Sequence[str]) -> np.ndarray | None:
    """Returns the code of each class, int32 [C]: 2 x the number of its kind, plus 1 for a B tag; 0 for O.

    Returns None if the names are not IOB tags.
    """
    tags = [name for name in names if name != "O"]
    if not tags or not all(tag.startswith(("B-", "I-")) for tag in tags):
        return None
    kinds = sorted({tag[2:] for tag in tags})
    return np.array([0 if n == "O" else 2 * (1 + kinds.index(n[2:])) + n.startswith("B-") for n in names], np.int32)


def counts(codes_C: np.ndarray, true_BTC, said_BTC, asked_BT, positions_BT) -> jax.Array:
    """Returns the number of right, predicted and true entities, float32 [3].

    Args:
      codes_C: of `codes`.
      true_BTC, said_BTC: one-hot true and predicted classes of each token.
      asked_BT: bool, whether the token has a tag. Other tokens are ignored.
      positions_BT: int32 offset of each token in its segment. No entity crosses a segment's border.
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
    """Returns [B, T] each: whether an entity starts at a token, and the next tagged token that does not continue it."""
    length = code_BT.shape[1]
    place_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), code_BT.shape)
    # The code of the previous tagged token: cummax finds place and code as one number. A previous token of another
    # segment counts as O.
    latest_BT = jax.lax.cummax(jnp.where(asked_BT, place_BT * count + code_BT, -1), axis=1)
    before_BT = jnp.pad(latest_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    before_BT = jnp.where(before_BT >= (place_BT - positions_BT) * count, before_BT % count, 0)
    inside_BT = asked_BT & (code_BT >= 2)
    start_BT = inside_BT & ((code_BT % 2 == 1) | (code_BT // 2 != before_BT // 2))
    stops_BT = jnp.where(asked_BT & ~(inside_BT & ~start_BT), place_BT, length)
    next_BT = jax.lax.cummin(stops_BT, axis=1, reverse=True)
    return start_BT, jnp.pad(next_BT[:, 1:], ((0, 0), (0, 1)), constant_values=length)
