"""Log-probabilities, entropies and divergences of each token, without holding all logits [batch, length, vocabulary].

They are differentiable. Preference, policy and distillation losses are built from them.

Each is a `measure` of the logits, passed to one primitive, `by_token`. The gradient that arrives for each token is
known only after the forward pass, so the backward pass recomputes the logits of each chunk. This is a fourth matmul
beside the three of losses.cross_entropy. If the token weights are known in advance, use losses.cross_entropy.

Dims: B rows, T length, C chunk of the length, V vocabulary, n chunks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.output import Output
from train import head_chunks
from train.head_chunks import Head, TableGradient


def token_logprobs(output: Output, targets_BT) -> jax.Array:
    """Returns log p(target) of each token, float32 [B, T], in nats.

    Its sum over an answer is the log-probability of the answer (DPO, arXiv:2305.18290, equation 7).
    """
    return by_token(_logprob, (output,), targets_BT)


class Scores(NamedTuple):
    """float32 [B, T], in nats."""

    logprob_BT: jax.Array
    entropy_BT: jax.Array


def token_scores(output: Output, targets_BT, temperature: float = 1.0, vocab_size: int = 0) -> Scores:
    """Returns each target's log-probability and the entropy of its distribution, in one pass.

    A policy loss with an entropy bonus needs both (PPO, arXiv:1707.06347, equation 9). Both are of the distribution
    that is sampled from: at this temperature, without ids from `vocab_size` on, which pad the table (0: none do).
    """
    return by_token(functools.partial(_scores, temperature, vocab_size), (output,), targets_BT)


class Divergences(NamedTuple):
    """The two KL divergences between distributions p and q, float32 [B, T], in nats."""

    p_to_q_BT: jax.Array  # KL(p || q) = sum of p log(p / q)
    q_to_p_BT: jax.Array  # KL(q || p)


def token_divergences(p: Output, q: Output) -> Divergences:
    """Returns the KL divergences between two models' distributions of each token, in both directions.

    Both models get gradients. A frozen teacher or reference costs no matmuls in the backward pass.

    Raises:
      ValueError: the outputs differ in rows, length or vocabulary.
    """
    return by_token(_divergences, (p, q))


def by_token(measure, outputs: tuple[Output, ...], *arrays_BT):
    """Returns `measure` of each token's logits, computed chunk by chunk: a tree of float32 [B, T].

    Args:
      measure: (logits float32 [B, C, V] of each output, *arrays [B, C, ...]) -> a tree of float32 [B, C], for one chunk
        of the tokens. It must not close over arrays, because these would get no gradient.
      outputs: outputs of models that saw the same tokens at the same places.
      arrays_BT: further arrays [B, T, ...] that `measure` needs, such as targets. They get no gradient.

    Raises:
      ValueError: the outputs differ in rows, length or vocabulary.
    """
    shapes = [(*output.x_BTE.shape[:2], output.table.shape[0]) for output in outputs]
    if len(set(shapes)) > 1:
        raise ValueError(f"outputs have different [rows, length, vocabulary]: {', '.join(map(str, shapes))}")
    settings = _Settings(measure, tuple(output.softcap for output in outputs))
    run = lambda _, heads, arrays: _by_token(settings, heads, arrays)
    return head_chunks.on_rows(run, tuple(map(head_chunks.head, outputs)), arrays_BT, add=False)


class _Settings(NamedTuple):
    measure: object
    softcaps: tuple[float, ...]

    def logits(self, heads, xs_BCD) -> list[jax.Array]:
        return list(map(head_chunks.logits, heads, self.softcaps, xs_BCD))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_token(settings, heads: tuple[Head, ...], arrays_BT):
    def body(_, chunk):
        xs_BCD, arrays_BC = chunk
        return None, settings.measure(*settings.logits(heads, xs_BCD), *arrays_BC)

    length = heads[0].x_BTD.shape[1]
    chunks = head_chunks.chunks(([head.x_BTD for head in heads], arrays_BT))
    return jax.tree.map(lambda a: head_chunks.joined(a, length), jax.lax.scan(body, None, chunks)[1])


def _forward(settings, heads, arrays_BT):
    return _by_token(settings, heads, arrays_BT), (heads, arrays_BT)


def _backward(settings, residuals, cotangents_BT):
    heads, arrays_BT = residuals

    def body(tables, chunk):
        xs_BCD, arrays_BC, cotangents_BC = chunk
        logits = settings.logits(heads, xs_BCD)
        _, pull = jax.vjp(lambda *logits: settings.measure(*logits, *arrays_BC), *logits)
        dlogits = map(head_chunks.through_softcap, pull(cotangents_BC), logits, settings.softcaps)
        found = list(map(head_chunks.back, heads, xs_BCD, dlogits, tables))
        return tuple(table for _, table in found), tuple(dx_BCD for dx_BCD, _ in found)

    chunks = head_chunks.chunks(([head.x_BTD for head in heads], arrays_BT, cotangents_BT))
    tables, dxs_nBCD = jax.lax.scan(body, tuple(map(TableGradient.zeros, heads)), chunks)
    return tuple(map(head_chunks.whole_gradient, heads, dxs_nBCD, tables)), None


_by_token.defvjp(_forward, _backward)


def _logprob(logits_BCV, targets_BC):
    is_target = head_chunks.is_target(targets_BC, logits_BCV.shape[-1])
    return jnp.where(is_target, logits_BCV, 0).sum(-1) - jax.nn.logsumexp(logits_BCV, axis=-1)


def _scores(temperature, vocab_size, logits_BCV, targets_BC):
    rows = logits_BCV.shape[-1]
    if 0 < vocab_size < rows:
        known_11V = jax.lax.broadcasted_iota(jnp.int32, (1, 1, rows), 2) < vocab_size
        logits_BCV = jnp.where(known_11V, logits_BCV, -1e30)
    logp_BCV = jax.nn.log_softmax(logits_BCV / temperature)
    is_target = head_chunks.is_target(targets_BC, rows)
    return Scores(jnp.where(is_target, logp_BCV, 0).sum(-1), -(jnp.exp(logp_BCV) * logp_BCV).sum(-1))


def _divergences(p_BCV, q_BCV):
    log_p_BCV, log_q_BCV = jax.nn.log_softmax(p_BCV), jax.nn.log_softmax(q_BCV)
    ratio_BCV = log_p_BCV - log_q_BCV
    return Divergences((jnp.exp(log_p_BCV) * ratio_BCV).sum(-1), -(jnp.exp(log_q_BCV) * ratio_BCV).sum(-1))
