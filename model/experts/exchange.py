"""Sends tokens to the devices of their experts and back over the mesh axis `expert`, in unequal numbers.

One small all-gather tells every device how many choices each device sends to each expert, so each can compute where its
tokens go. Buffers have a fixed size: `Experts.buffer` times an even share of all choices, or enough for the worst load.
Call it inside a shard_map.

Dims: N tokens of a device, K experts per token, D embed, E experts, P devices along `expert`, M rows of a buffer.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from model import axes
from model.parts import Experts

AXIS = "expert"


@dataclasses.dataclass(frozen=True)
class Trip:
    """The routes of one layer's tokens."""

    order: jax.Array  # int32 [N K]: choices, sorted by expert
    shape_NK: tuple[int, int]
    ids_M: jax.Array  # int32: this device's expert of each buffer row; the number of its experts for empty rows
    sent_PP: jax.Array  # int32: rows from device to device
    begins_PP: jax.Array  # int32: where the rows from the first to the second device start among its sorted choices
    dropped: jax.Array  # float32: choices of this device that found no room

    def there(self, x_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (the rows sent to this device's experts [M, D], their expert ids [M, 1])."""
        begins = jnp.cumsum(self.sent_PP, 0) - self.sent_PP  # in the receiving device's buffer
        x_MD = _moved(x_ND[self.order // self.shape_NK[1]], len(self.ids_M), self.sent_PP, self.begins_PP, begins)
        return x_MD, self.ids_M[:, None]

    def back(self, y_M1D: jax.Array) -> jax.Array:
        """Sends the experts' results back to their tokens: [N, K, D], zeros for dropped choices."""
        begins = jnp.cumsum(self.sent_PP, 0) - self.sent_PP
        y = _moved(y_M1D[:, 0], self.order.size, self.sent_PP.T, begins.T, self.begins_PP.T)
        places = (
            jnp.zeros_like(self.order)
            .at[self.order]
            .set(jnp.arange(self.order.size, dtype=jnp.int32), unique_indices=True)
        )
        return y[places].reshape(*self.shape_NK, -1)


def plan(ids_NK: jax.Array, experts: Experts) -> Trip:
    """Computes the routes of tokens with these experts; runs on each device of a shard_map."""
    p, choices = axes.size(AXIS), ids_NK.size
    own = experts.count // p
    room = math.ceil(experts.buffer * choices) or p * len(ids_NK) * min(ids_NK.shape[1], own)
    loads_E = (ids_NK.reshape(-1, 1) == jnp.arange(experts.count)).sum(0, dtype=jnp.int32)
    # From each device to each expert of each device; choices that exceed a buffer stay.
    wanted_SPE = jax.lax.all_gather(loads_E, AXIS).reshape(p, p, own)
    in_buffer = jnp.swapaxes(wanted_SPE, 0, 1).reshape(p, -1)  # by device, in the order of its buffer
    ends = jnp.minimum(jnp.cumsum(in_buffer, 1), room)
    loads_SPE = jnp.swapaxes(jnp.diff(ends, prepend=0, axis=1).reshape(p, p, own), 0, 1)
    wanted_PP, me = wanted_SPE.sum(2), jax.lax.axis_index(AXIS)
    places = jnp.searchsorted(ends[me], jnp.arange(room), side="right").astype(jnp.int32)
    return Trip(
        order=jnp.argsort(ids_NK.reshape(-1)).astype(jnp.int32),
        shape_NK=(ids_NK.shape[0], ids_NK.shape[1]),
        ids_M=jnp.where(places < p * own, places % own, own),
        sent_PP=loads_SPE.sum(2),
        begins_PP=jnp.cumsum(wanted_PP, 1) - wanted_PP,
        dropped=(wanted_SPE - loads_SPE)[me].sum().astype(jnp.float32),
    )


def _moved(x, rows, sent_PP, begins_PP, places_PP):
    """Sends rows between devices, [n, D] -> [rows, D], with zeros between them.

    Args:
      rows: of this device's result.
      sent_PP: number of rows from device to device.
      begins_PP: where they start on the sender.
      places_PP: where they start on the receiver.
    """
    me = jax.lax.axis_index(AXIS)
    if axes.platform() == "cpu":
        # XLA's CPU compiler lacks a ragged all-to-all: gather everything and select this device's rows.
        everything = jax.lax.all_gather(x, AXIS)
        row = jnp.arange(rows)[:, None]
        mine = (row >= places_PP[:, me]) & (row < (places_PP + sent_PP)[:, me])
        source = mine.argmax(1)
        found = everything[source, jnp.where(mine.any(1), row[:, 0] + (begins_PP - places_PP)[source, me], 0)]
        return jnp.where(mine.any(1)[:, None], found, 0)
    empty = jnp.zeros_like(x, shape=(rows, x.shape[1]))
    return jax.lax.ragged_all_to_all(
        x, empty, begins_PP[me], sent_PP[me], places_PP[me], sent_PP[:, me], axis_name=AXIS
    )
