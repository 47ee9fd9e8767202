"""Loss: the one form of every objective's result. Cross-entropy that never holds [batch, length, vocabulary].

Logits are made, used and dropped chunk by chunk along the length; their gradient is computed in the same pass, so
nothing is kept or made twice: the backward pass only scales what the forward pass found. Tokens stay where they are on
the mesh (shard_map over the axes of rows and their length), each device sums its own gradient of the output table, and
one reduction at the end adds them. The vocabulary may be split over `tensor`.

Dims: B rows, T length, C chunk of the length, D features, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model import axes
from model.output import Output

# Logits in flight on one device: tokens (rows x chunk) times the vocabulary.
CHUNK_TOKENS = 1024


class Loss(NamedTuple):
    """Sums over a batch, so that they add up over micro-batches and devices; the step divides once, by `weight`."""

    total: jax.Array  # float32 scalar: what is differentiated
    weight: jax.Array  # float32 scalar: what it is divided by, e.g. the number of tokens
    metrics: dict[str, jax.Array]  # further float32 sums (or arrays of them), divided by `weight` as well


class TokenLoss(NamedTuple):
    """Weighted sums over tokens, float32 scalars."""

    total: jax.Array  # smoothed cross-entropy + z-loss; has a gradient
    cross_entropy: jax.Array  # nats, unsmoothed; no gradient
    z_loss: jax.Array  # no gradient


def cross_entropy(output: Output, targets_BT, weights_BT, *, z_loss=0.0, label_smoothing=0.0) -> TokenLoss:
    """Cross-entropy of the softmax of an output layer's scores against integer targets.

    Args:
      output: of the model, for these tokens.
      targets_BT: int32.  weights_BT: float32 weight of each token.
      z_loss: adds z_loss * logsumexp^2 a token, which keeps logits from drifting (PaLM, arXiv:2204.02311).
      label_smoothing: mass taken from the target and spread over the vocabulary (arXiv:1512.00567).
    """
    x_BTD, table, bias, softcap = output
    w_VD = axes.gather(table[...].astype(x_BTD.dtype))
    b_V = None if bias is None else bias[...].astype(jnp.float32)
    # Rows on one device each need no map; XLA's partitioner fails where a map's devices are all one.
    names = axes.splitting("batch", "length", shape=targets_BT.shape)
    run = functools.partial(_token_loss, _Settings(z_loss, label_smoothing, softcap, names))
    if not names:
        return run(x_BTD, w_VD, b_V, targets_BT, weights_BT)

    def local(x_BTD, w_VD, b_V, targets_BT, weights_BT):
        # The transpose of this cast is the one sum of the table's gradient over devices.
        w_VD, b_V = jax.lax.pcast((w_VD, b_V), names, to="varying")
        return jax.lax.psum(run(x_BTD, w_VD, b_V, targets_BT, weights_BT), names)

    rows, whole = axes.spec("batch", "length", shape=targets_BT.shape), PartitionSpec()
    specs = (rows, whole, whole, rows, rows)
    return jax.shard_map(local, axis_names=set(names), in_specs=specs, out_specs=whole)(
        x_BTD, w_VD, b_V, targets_BT, weights_BT
    )


class _Settings(NamedTuple):
    z_loss: float
    smoothing: float
    softcap: float
    varying: tuple[str, ...]  # mesh axes whose devices each have rows of their own

    def constant(self, value: jax.Array) -> jax.Array:
        """Marks a constant as different on each device, as what will be added to it is."""
        return jax.lax.pcast(value, self.varying, to="varying") if self.varying else value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_loss(settings, x_BTD, w_VD, b_V, targets_BT, weights_BT):
    def body(sums, chunk):
        return jax.tree.map(jnp.add, sums, _chunk(settings, w_VD, b_V, *chunk)[0]), None

    return jax.lax.scan(body, _zeros(settings), _chunks(x_BTD, targets_BT, weights_BT))[0]


def _forward(settings, x_BTD, w_VD, b_V, targets_BT, weights_BT):
    def body(carry, chunk):
        sums, dw_DV, db_V = carry
        more, dlogits_BCV = _chunk(settings, w_VD, b_V, *chunk)
        db_V = None if db_V is None else db_V + dlogits_BCV.sum((0, 1))
        dlogits_BCV = dlogits_BCV.astype(x_BTD.dtype)
        dx_BCD = jnp.einsum("BCV,VD->BCD", dlogits_BCV, w_VD, out_sharding=axes.out("batch", "length", "features"))
        # In this order because a CPU copies the first operand transposed: the smaller one.
        contract = (((0, 1), (0, 1)), ((), ()))
        dw_DV += jax.lax.dot_general(
            chunk[0],
            dlogits_BCV,
            contract,
            preferred_element_type=_product_dtype(w_VD.dtype),
            out_sharding=axes.out("features", "vocab"),
        )
        return (jax.tree.map(jnp.add, sums, more), dw_DV, db_V), dx_BCD

    chunks = _chunks(x_BTD, targets_BT, weights_BT)
    dw_DV = jnp.zeros_like(w_VD.T, jnp.float32)
    db_V = None if b_V is None else jnp.zeros_like(b_V)
    (sums, dw_DV, db_V), dx = jax.lax.scan(body, (_zeros(settings), dw_DV, db_V), chunks)
    b, t, d = x_BTD.shape
    dx_BTD = jnp.swapaxes(dx, 0, 1).reshape(b, -1, d)[:, :t]
    return sums, (dx_BTD, dw_DV.T.astype(w_VD.dtype), db_V)


def _backward(settings, residuals, cotangents):
    scaled = jax.tree.map(lambda d: d * cotangents.total.astype(d.dtype), residuals)
    return *scaled, None, None


_token_loss.defvjp(_forward, _backward)


def _chunk(settings, w_VD, b_V, x_BCD, targets_BC, weights_BC):
    """The sums of one chunk, and the gradient of its total with respect to its logits, float32 [B, C, V]."""
    z_loss, smoothing, softcap, _ = settings
    logits = jnp.einsum(
        "BCD,VD->BCV",
        x_BCD,
        w_VD,
        preferred_element_type=_product_dtype(w_VD.dtype),
        out_sharding=axes.out("batch", "length", "vocab"),
    ).astype(jnp.float32)
    if b_V is not None:
        logits += b_V
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    exp = jnp.exp(logits - top)
    norm = exp.sum(-1, keepdims=True)
    log_z = (jnp.log(norm) + top)[..., 0]
    # A comparison and not a look-up: the vocabulary may be split over devices, and it fuses with the rest.
    is_target = jax.lax.broadcasted_iota(jnp.int32, (1, 1, w_VD.shape[0]), 2) == targets_BC[..., None]
    nll = log_z - jnp.where(is_target, logits, 0).sum(-1)
    penalty = z_loss * jnp.square(log_z)
    loss, target = nll, is_target.astype(jnp.float32)
    if smoothing:
        loss = (1 - smoothing) * nll + smoothing * (log_z - logits.mean(-1))
        target = (1 - smoothing) * target + smoothing / w_VD.shape[0]
    dlogits = weights_BC[..., None] * (exp / norm * (1 + 2 * z_loss * log_z[..., None]) - target)
    if softcap:
        dlogits *= 1 - jnp.square(logits / softcap)
    sums = TokenLoss(*((weights_BC * value).sum() for value in (loss + penalty, nll, penalty)))
    return sums, dlogits


def _product_dtype(dtype):
    """float32, but on a CPU what the operands have: XLA would widen bfloat16 operands and lose their fast product."""
    return dtype if axes.platform() == "cpu" else jnp.float32


def _chunks(*arrays_BT):
    """Each [B, T, ...] as chunks [n, B, C, ...] for a scan; padded at the end with zeros (of weight 0)."""
    b, t = arrays_BT[0].shape[:2]
    # At least two, so that the whole batch's logits never exist at once.
    n = min(t, max(2, -(-b * t // CHUNK_TOKENS)))
    size = -(-t // n)
    pad = lambda a: jnp.pad(a, ((0, 0), (0, n * size - t)) + ((0, 0),) * (a.ndim - 2)) if n * size != t else a
    return tuple(jnp.swapaxes(pad(a).reshape(b, n, size, *a.shape[2:]), 0, 1) for a in arrays_BT)


def _zeros(settings):
    return TokenLoss(*(settings.constant(jnp.zeros((), jnp.float32)),) * 3)
