"""Loss, the result of every objective, and a cross-entropy that never holds all logits [batch, length, vocabulary].

The gradient with respect to the logits is computed in the forward pass, as soon as a chunk of logits exists. So no
logits are stored or recomputed, and the backward pass only scales the gradients. This requires that the token weights
are known in advance. Losses whose weights depend on the model's log-probabilities (preferences, policies, distillation)
use token_logprobs.py instead.

Dims: B rows, T length, C chunk of the length, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.output import Output
from train import head_chunks
from train.head_chunks import Head, TableGradient


class Loss(NamedTuple):
    """Sums over a batch. They add up over micro-batches and devices, and the step divides once, by `weight`."""

    total: jax.Array  # float32 scalar: the sum that is differentiated
    weight: jax.Array  # float32 scalar: the sum of the weights, such as the number of target tokens
    metrics: dict[str, jax.Array]  # further float32 sums (scalars or arrays), which are divided by `weight` too


class TokenLoss(NamedTuple):
    """Weighted sums over tokens, float32 scalars."""

    total: jax.Array  # smoothed cross-entropy + z-loss; only this one has a gradient
    cross_entropy: jax.Array  # nats, unsmoothed
    z_loss: jax.Array


def cross_entropy(output: Output, targets_BT, weights_BT, *, z_loss=0.0, label_smoothing=0.0) -> TokenLoss:
    """Returns the cross-entropy of an output layer's logits against integer targets, summed over tokens.

    Args:
      output: the model's hidden states and output layer for these tokens.
      targets_BT: int32.
      weights_BT: float32 weight of each token; 0 masks a token.
      z_loss: adds z_loss * logsumexp^2 per token, which keeps logits from drifting (PaLM, arXiv:2204.02311).
      label_smoothing: probability mass moved from the target to the whole vocabulary (arXiv:1512.00567).
    """

    def run(names, heads, arrays_BT):
        return _token_loss(_Settings(z_loss, label_smoothing, output.softcap, names), *heads, *arrays_BT)

    return head_chunks.on_rows(run, (head_chunks.head(output),), (targets_BT, weights_BT), add=True)


class _Settings(NamedTuple):
    z_loss: float
    smoothing: float
    softcap: float
    varying: tuple[str, ...]  # mesh axes over which the tokens are split

    def constant(self, value: jax.Array) -> jax.Array:
        """Marks a constant as device-varying, because device-varying sums will be added to it in a scan."""
        return jax.lax.pcast(value, self.varying, to="varying") if self.varying else value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_loss(settings, head: Head, targets_BT, weights_BT):
    def body(sums, chunk):
        return jax.tree.map(jnp.add, sums, _chunk(settings, head, *chunk)[0]), None

    return jax.lax.scan(body, _zeros(settings), head_chunks.chunks((head.x_BTD, targets_BT, weights_BT)))[0]


def _forward(settings, head: Head, targets_BT, weights_BT):
    def body(carry, chunk):
        sums, table = carry
        more, dlogits_BCV = _chunk(settings, head, *chunk)
        dx_BCD, table = head_chunks.back(head, chunk[0], dlogits_BCV, table)
        return (jax.tree.map(jnp.add, sums, more), table), dx_BCD

    chunks = head_chunks.chunks((head.x_BTD, targets_BT, weights_BT))
    (sums, table), dx_nBCD = jax.lax.scan(body, (_zeros(settings), TableGradient.zeros(head)), chunks)
    return sums, head_chunks.whole_gradient(head, dx_nBCD, table)


def _backward(settings, residuals: Head, cotangents):
    scaled = jax.tree.map(lambda d: d * cotangents.total.astype(d.dtype), residuals)
    return scaled, None, None


_token_loss.defvjp(_forward, _backward)


def _chunk(settings, head: Head, x_BCD, targets_BC, weights_BC):
    """Returns the sums of one chunk, and the gradient of its total by logits before the softcap, float32 [B, C, V]."""
    z_loss, smoothing, softcap, _ = settings
    vocab = head.w_VD.shape[0]
    logits = head_chunks.logits(head, softcap, x_BCD)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    exp = jnp.exp(logits - top)
    norm = exp.sum(-1, keepdims=True)
    log_z = (jnp.log(norm) + top)[..., 0]
    is_target = head_chunks.is_target(targets_BC, vocab)
    nll = log_z - jnp.where(is_target, logits, 0).sum(-1)
    penalty = z_loss * jnp.square(log_z)
    loss, target = nll, is_target.astype(jnp.float32)
    if smoothing:
        loss = (1 - smoothing) * nll + smoothing * (log_z - logits.mean(-1))
        target = (1 - smoothing) * target + smoothing / vocab
    dlogits = weights_BC[..., None] * (exp / norm * (1 + 2 * z_loss * log_z[..., None]) - target)
    sums = TokenLoss(*((weights_BC * value).sum() for value in (loss + penalty, nll, penalty)))
    return sums, head_chunks.through_softcap(dlogits, logits, softcap)


def _zeros(settings):
    return TokenLoss(*(settings.constant(jnp.zeros((), jnp.float32)),) * 3)
