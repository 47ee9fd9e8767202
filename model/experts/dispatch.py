"""Tokens to their experts and back, dropless or with a fixed capacity.

`dropless` sorts a device's tokens by expert and multiplies each run with its expert's weights, so the work is
proportional to the tokens (MegaBlocks, arXiv:2211.15841). `capacity` gives every expert the same number of places in
each row (GShard, arXiv:2006.16668) and drops tokens that find none. Both work on one device's rows; moe.py maps them
over devices. If experts are split over `expert`, tokens travel: with a capacity in one all-to-all of equal parts,
otherwise through exchange.py.

Dims: B rows, T length, D embed, F hidden of an expert, E experts, K experts per token, C places of an expert in a row,
N tokens (B T), M places of tokens sorted by expert, R rows of a block.
"""

import functools
import math

import jax
import jax.numpy as jnp

from model import axes
from model.experts import exchange
from model.experts.router import Routing
from model.parts import Experts


def dropless(experts: Experts, x_BTD, routing: Routing, apply):
    """Runs every token through its experts.

    Args:
      apply: (x, product) -> y, the experts' equation, where product(x, w) multiplies with the weights [E, in, out] of
        this device's experts.

    Returns:
      (y [B, T, D] in x's dtype, the number of dropped choices: 0 unless `experts.buffer` is too small).
    """
    x_ND, ids_NK = x_BTD.reshape(-1, x_BTD.shape[-1]), routing.ids_NK
    dropped: jax.Array | int = 0
    if axes.size("expert") > 1:
        trip = exchange.plan(ids_NK, experts)
        y_ND = _through(*trip.there(x_ND), experts.count // axes.size("expert"), apply)
        y_NKD, dropped = trip.back(y_ND), trip.dropped
    else:
        y_NKD = _through(x_ND, ids_NK, experts.count, apply)
    y_ND = jnp.einsum("NKD,NK->ND", y_NKD, routing.weights_NK)
    return y_ND.astype(x_BTD.dtype).reshape(x_BTD.shape), dropped


def _through(x_ND, ids_NK, count, apply):
    """Runs rows through this device's `count` experts, -> [N, K, D]; ids >= `count` belong to none and give 0."""
    rows = 1 if axes.platform() == "tpu" else _block_rows(ids_NK.size, count)
    places_NK, source_M, sizes_E = _sort(ids_NK, count, rows)
    x_MD = _take(x_ND, source_M // ids_NK.shape[1], places_NK)
    if rows == 1:
        product = lambda x, w: jax.lax.ragged_dot(x, w, sizes_E)
    else:
        # On other platforms, XLA computes a ragged product with every expert and masks the result. On a CPU with 4096
        # tokens and 16 experts of 384 x 512, that is 17 times slower than these blocks.
        starts = jnp.arange(source_M.size // rows) * rows
        of_block = jnp.searchsorted(jnp.cumsum(sizes_E), starts, side="right").clip(max=count - 1)
        used = sizes_E.sum() // rows
        product = lambda x, w: _blocks(x.reshape(-1, rows, x.shape[-1]), w, of_block, used).reshape(len(x), -1)
    return _take(apply(x_MD, product), places_NK, source_M[:, None])


def capacity(experts: Experts, x_BTD, routing: Routing, apply):
    """Runs tokens through those of their experts that have a place left in their row; arguments as in `dropless`.

    First come, first served: all first choices before all second ones (arXiv:2006.16668, algorithm 1), and earlier
    tokens before later ones. Padding takes no place. If the length is split over devices, each part counts as a row.

    Returns:
      (y [B, T, D] in x's dtype, the number of dropped choices).
    """
    b, t, _ = x_BTD.shape
    places = experts.capacity or math.ceil(experts.capacity_factor * t * experts.per_token / experts.count)
    chosen_BTKE = routing.chosen_NKE.reshape(b, t, experts.per_token, experts.count)
    in_order = jnp.swapaxes(chosen_BTKE, 1, 2).reshape(b, -1, experts.count)
    before = jnp.cumsum(in_order, 1, dtype=jnp.int32).reshape(b, experts.per_token, t, experts.count) - 1
    place_BTK = jnp.where(chosen_BTKE, jnp.swapaxes(before, 1, 2), 0).sum(-1)
    at_BTKC = jax.nn.one_hot(place_BTK, places, dtype=x_BTD.dtype)  # all zeros for places that do not exist
    chosen = chosen_BTKE.astype(x_BTD.dtype)
    weights_BTK = routing.weights_NK.reshape(b, t, -1).astype(x_BTD.dtype)
    x_BECD = jnp.einsum("BTEC,BTD->BECD", jnp.einsum("BTKE,BTKC->BTEC", chosen, at_BTKC), x_BTD)
    spread = axes.size("expert") > 1
    if spread:
        x_BECD = jax.lax.all_to_all(x_BECD, "expert", split_axis=1, concat_axis=0, tiled=True)
    y_BECD = apply(x_BECD, functools.partial(jnp.einsum, "BECD,EDF->BECF"))
    if spread:
        y_BECD = jax.lax.all_to_all(y_BECD, "expert", split_axis=0, concat_axis=1, tiled=True)
    combine_BTEC = jnp.einsum("BTKE,BTKC->BTEC", chosen, at_BTKC * weights_BTK[..., None])
    dropped = (chosen_BTKE & (place_BTK >= places)[..., None]).sum(dtype=jnp.float32)
    return jnp.einsum("BTEC,BECD->BTD", combine_BTEC, y_BECD), dropped


def _block_rows(choices, count):
    """Half of an expert's mean load, so that partial blocks add a quarter to the work; a power of 2."""
    return min(256, max(8, 1 << round(math.log2(max(1, choices / (2 * count))))))


def _sort(ids_NK, count, rows):
    """Sorts choices by expert, with every expert's run starting at a multiple of `rows`; ids >= `count` get no place.

    Returns:
      (places_NK; source_M, the choice at each place, N K for none; sizes_E, places of each expert, including empty
      ones).
    """
    ids = ids_NK.reshape(-1)
    order = jnp.argsort(ids)
    loads = (ids[:, None] == jnp.arange(count)).sum(0, dtype=jnp.int32)
    sizes = -(-loads // rows) * rows
    shift = (jnp.cumsum(sizes) - sizes) - (jnp.cumsum(loads) - loads)
    # Enough blocks for the worst load.
    total = (ids.size + min(count, ids.size) * (rows - 1)) // rows * rows
    numbers, sorted_ids = jnp.arange(ids.size, dtype=jnp.int32), ids[order]
    places = numbers + jnp.where(sorted_ids < count, shift[sorted_ids], total)
    source = jnp.full_like(ids, ids.size, shape=(total,)).at[places].set(order.astype(jnp.int32), unique_indices=True)
    of_choice = jnp.zeros_like(ids).at[order].set(places, unique_indices=True)
    return of_choice.reshape(ids_NK.shape), source, sizes


@jax.custom_vjp
def _take(x, index, back):
    """Returns x[index], with zeros for indices past the end.

    Its gradient is a lookup too, because scatter-adds are slow on all platforms: `back` [len(x), n] lists the rows of
    the result that hold a row of x (past the end for none).
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _take_forward(x, index, back):
    return _take(x, index, back), back


def _take_backward(back, dy):
    dy = dy.reshape(-1, dy.shape[-1])
    return dy.at[back].get(mode="fill", fill_value=0).sum(1), None, None


_take.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def _blocks(x_nRD, w_EDF, of_block, used):
    """Multiplies each of the first `used` blocks with one expert's weights, [n, R, D] -> [n, R, F]; zeros after them.

    A loop avoids copying weights for every block, and its gradient adds to the weights' in place.
    """

    def body(n, y_nRF):
        return y_nRF.at[n].set(jnp.einsum("RD,DF->RF", x_nRD[n], w_EDF[of_block[n]]))

    return jax.lax.fori_loop(0, used, body, jnp.zeros_like(x_nRD, shape=(*x_nRD.shape[:2], w_EDF.shape[2])))


def _blocks_forward(x_nRD, w_EDF, of_block, used):
    return _blocks(x_nRD, w_EDF, of_block, used), (x_nRD, w_EDF, of_block, used)


def _blocks_backward(residuals, dy_nRF):
    x_nRD, w_EDF, of_block, used = residuals

    def body(n, carry):
        dx_nRD, dw_EDF = carry
        expert = of_block[n]
        dw_EDF = dw_EDF.at[expert].add(jnp.einsum("RD,RF->DF", x_nRD[n], dy_nRF[n]).astype(jnp.float32))
        return dx_nRD.at[n].set(jnp.einsum("RF,DF->RD", dy_nRF[n], w_EDF[expert])), dw_EDF

    zeros = (jnp.zeros_like(x_nRD), jnp.zeros_like(w_EDF, jnp.float32))
    dx_nRD, dw_EDF = jax.lax.fori_loop(0, used, body, zeros)
    return dx_nRD, dw_EDF.astype(w_EDF.dtype), None, None


_blocks.defvjp(_blocks_forward, _blocks_backward)
