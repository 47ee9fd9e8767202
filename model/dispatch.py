"""Tokens to their experts and back: without loss, or with a fixed capacity.

`dropless` sorts a device's tokens by expert and multiplies each run with its expert's weights, so the work is what the
tokens need (MegaBlocks, arXiv:2211.15841). `capacity` gives every expert the same number of places in each row
(GShard, arXiv:2006.16668), and what finds no place is dropped. Both see one device's rows; moe.py spreads them.

Dims: B rows, T length, D embed, F hidden of an expert, E experts, K experts of a token, C places of an expert in a row,
N tokens (B T), M places of tokens sorted by expert, R rows of a block.
"""

import functools
import math

import jax
import jax.numpy as jnp

from model import axes
from model.parts import Experts
from model.router import Routing


def dropless(experts: Experts, x_BTD, routing: Routing, apply):
    """Every token through its experts.

    Args:
      apply: (x, product) -> y, the experts' equation, where product(x, w) multiplies with the weights [E, in, out].

    Returns:
      (y [B, T, D] in x's dtype, the number of dropped choices: 0).
    """
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    choices = routing.ids_NK.size
    rows = 1 if axes.platform() == "tpu" else _block_rows(choices, experts.count)
    places_NK, source_M, sizes_E = _sort(routing.ids_NK, experts.count, rows)
    x_MD = _take(x_ND, source_M // experts.per_token, places_NK)
    if rows == 1:
        product = lambda x, w: jax.lax.ragged_dot(x, w, sizes_E)
    else:
        # Elsewhere XLA writes a ragged product as one with every expert and masks the result: on a CPU, 4096 tokens,
        # 16 experts of 384 x 512, 17 times as slow as these blocks.
        starts = jnp.arange(source_M.size // rows) * rows
        of_block = jnp.searchsorted(jnp.cumsum(sizes_E), starts, side="right").clip(max=experts.count - 1)
        product = lambda x, w: _blocks(x.reshape(-1, rows, x.shape[-1]), w, of_block).reshape(len(x), -1)
    y_MD = apply(x_MD, product)
    y_NKD = _take(y_MD, places_NK, source_M[:, None])
    y_ND = jnp.einsum("NKD,NK->ND", y_NKD, routing.weights_NK)
    return y_ND.astype(x_BTD.dtype).reshape(x_BTD.shape), 0


def capacity(experts: Experts, x_BTD, routing: Routing, apply):
    """Tokens through those of their experts that have a place left in their row. As `dropless`, but for the drops.

    First come, first served: all first choices before the second ones (arXiv:2006.16668, algorithm 1), earlier tokens
    before later ones. Padding takes no place. Where the length is split over devices, a part counts as a row.
    """
    b, t, _ = x_BTD.shape
    places = experts.capacity or math.ceil(experts.capacity_factor * t * experts.per_token / experts.count)
    chosen_BTKE = routing.chosen_NKE.reshape(b, t, experts.per_token, experts.count)
    in_order = jnp.swapaxes(chosen_BTKE, 1, 2).reshape(b, -1, experts.count)
    before = jnp.cumsum(in_order, 1, dtype=jnp.int32).reshape(b, experts.per_token, t, experts.count) - 1
    place_BTK = jnp.where(chosen_BTKE, jnp.swapaxes(before, 1, 2), 0).sum(-1)
    at_BTKC = jax.nn.one_hot(place_BTK, places, dtype=x_BTD.dtype)  # zeros from `places` on
    chosen = chosen_BTKE.astype(x_BTD.dtype)
    weights_BTK = routing.weights_NK.reshape(b, t, -1).astype(x_BTD.dtype)
    x_BECD = jnp.einsum("BTEC,BTD->BECD", jnp.einsum("BTKE,BTKC->BTEC", chosen, at_BTKC), x_BTD)
    y_BECD = apply(x_BECD, functools.partial(jnp.einsum, "BECD,EDF->BECF"))
    combine_BTEC = jnp.einsum("BTKE,BTKC->BTEC", chosen, at_BTKC * weights_BTK[..., None])
    dropped = (chosen_BTKE & (place_BTK >= places)[..., None]).sum(dtype=jnp.float32)
    return jnp.einsum("BTEC,BECD->BTD", combine_BTEC, y_BECD), dropped


def _block_rows(choices, count):
    """Half an expert's mean load, so that blocks that are not full add a quarter to the work; a power of 2."""
    return min(256, max(8, 1 << round(math.log2(max(1, choices / (2 * count))))))


def _sort(ids_NK, count, rows):
    """Places for choices, sorted by expert, where each expert's run begins at a multiple of `rows`.

    Returns:
      (places_NK; source_M, which choice a place holds, N K for none; sizes_E, places of each expert, empty ones too).
    """
    ids = ids_NK.reshape(-1)
    order = jnp.argsort(ids)
    loads = (ids[:, None] == jnp.arange(count)).sum(0, dtype=jnp.int32)
    sizes = -(-loads // rows) * rows
    shift = (jnp.cumsum(sizes) - sizes) - (jnp.cumsum(loads) - loads)
    places = jnp.arange(ids.size, dtype=jnp.int32) + shift[ids[order]]
    # As many blocks as the worst load needs.
    total = (ids.size + min(count, ids.size) * (rows - 1)) // rows * rows
    source = jnp.full_like(ids, ids.size, shape=(total,)).at[places].set(order.astype(jnp.int32), unique_indices=True)
    of_choice = jnp.zeros_like(ids).at[order].set(places, unique_indices=True)
    return of_choice.reshape(ids_NK.shape), source, sizes


@jax.custom_vjp
def _take(x, index, back):
    """x[index], zeros where the index is past the end. Its gradient is a look-up too, as `back` [len(x), n] says which
    rows of the result hold a row of x (past the end for none): adding up by index is slow everywhere."""
    return x.at[index].get(mode="fill", fill_value=0)


def _take_forward(x, index, back):
    return _take(x, index, back), back


def _take_backward(back, dy):
    dy = dy.reshape(-1, dy.shape[-1])
    return dy.at[back].get(mode="fill", fill_value=0).sum(1), None, None


_take.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def _blocks(x_nRD, w_EDF, of_block):
    """Each block of rows times the weights of one expert: [n, R, D] -> [n, R, F]. A loop, so that no weight is copied
    for every block, with a gradient that adds to the weights' in place."""
    body = lambda _, block: (None, jnp.einsum("RD,DF->RF", block[0], w_EDF[block[1]]))
    return jax.lax.scan(body, None, (x_nRD, of_block))[1]


def _blocks_forward(x_nRD, w_EDF, of_block):
    return _blocks(x_nRD, w_EDF, of_block), (x_nRD, w_EDF, of_block)


def _blocks_backward(residuals, dy_nRF):
    x_nRD, w_EDF, of_block = residuals

    def body(dw_EDF, block):
        x_RD, dy_RF, expert = block
        dw_EDF = dw_EDF.at[expert].add(jnp.einsum("RD,RF->DF", x_RD, dy_RF).astype(jnp.float32))
        return dw_EDF, jnp.einsum("RF,DF->RD", dy_RF, w_EDF[expert])

    dw_EDF, dx_nRD = jax.lax.scan(body, jnp.zeros_like(w_EDF, jnp.float32), (x_nRD, dy_nRF, of_block))
    return dx_nRD, dw_EDF.astype(w_EDF.dtype), None


_blocks.defvjp(_blocks_forward, _blocks_backward)
