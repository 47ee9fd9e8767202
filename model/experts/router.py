"""Which experts a token uses, with which weights, and what balances the experts' load.

Everything here is float32 whatever the compute dtype is: a choice between experts depends on small differences
(Switch Transformer, arXiv:2101.03961, section 2.4).

Dims: N tokens, E experts, K experts per token, G groups of experts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.parts import Experts


class Routing(NamedTuple):
    """The experts of each token."""

    chosen_NKE: jax.Array  # bool: whether the k-th choice of token n is expert e; all False for padding
    weights_NK: jax.Array  # float32: multiplies the expert's output; 0 for padding
    ids_NK: jax.Array  # int32: the chosen expert; the number of experts for padding


class RouterStats(NamedTuple):
    """Float32 sums over tokens without padding, so that they add up over micro-batches and devices.

    They may have a leading dim of layers, and may be summed over layers as well.
    """

    load_E: jax.Array  # choices of each expert, including dropped ones; no gradient
    probs_E: jax.Array  # probability of each expert; has a gradient
    z_loss: jax.Array  # squared logsumexp of the logits; has a gradient
    dropped: jax.Array  # choices that were dropped because the expert was full; no gradient
    tokens: jax.Array

    def balance_loss(self) -> jax.Array:
        """Returns the load-balancing loss E * sum_e f_e P_e over the summed tokens.

        f_e is the mean number of times that a token chose e, and P_e the mean probability of e. Evenly chosen experts
        give per_token, the minimum for an even P. These are equations 4 to 6 of the Switch Transformer
        (arXiv:2101.03961) for one expert per token; with several, it follows transformers' Mixtral, which also sums
        over layers. The loss is not linear in the sums: computed per micro-batch or per row, it is a different loss.
        """
        tokens = jnp.maximum(self.tokens, 1)[..., None]
        return self.load_E.shape[-1] * (self.load_E / tokens * self.probs_E / tokens).sum(-1)

    def mean_z_loss(self) -> jax.Array:
        """Mean squared logsumexp of a token's logits (ST-MoE, arXiv:2202.08906, equation 5)."""
        return self.z_loss / jnp.maximum(self.tokens, 1)


def route(experts: Experts, logits_NE, correction_E, real_N) -> tuple[Routing, RouterStats]:
    """Chooses experts.

    Args:
      logits_NE: float32.
      correction_E: float32, or None; added to the scores for the choice but not for the weights.
      real_N: bool, False for padding.

    Returns:
      (the routing, its statistics with nothing dropped).
    """
    scores_NE = jax.nn.sigmoid(logits_NE) if experts.score == "sigmoid" else jax.nn.softmax(logits_NE)
    merit_NE = jax.lax.stop_gradient(scores_NE if correction_E is None else scores_NE + correction_E)
    if experts.groups > 1:
        merit_NE = _in_best_groups(experts, merit_NE)
    ids_NK = jax.lax.top_k(merit_NE, experts.per_token)[1]
    # A comparison instead of a lookup, because it and its gradient fuse.
    chosen_NKE = ids_NK[..., None] == jnp.arange(experts.count)
    weights_NK = jnp.where(chosen_NKE, scores_NE[:, None], 0).sum(-1)
    if experts.normalize:
        weights_NK /= weights_NK.sum(-1, keepdims=True) + 1e-20  # sigmoids may all be 0
    chosen_NKE &= real_N[:, None, None]
    weights_NK = jnp.where(real_N[:, None], weights_NK * experts.scale, 0)
    # With sigmoid scores, each expert's share of their sum (arXiv:2412.19437, equation 19).
    probs_NE = scores_NE / (scores_NE.sum(-1, keepdims=True) + 1e-20) if experts.score == "sigmoid" else scores_NE
    z_N = jnp.square(jax.nn.logsumexp(logits_NE, -1))
    stats = RouterStats(
        load_E=chosen_NKE.sum((0, 1), dtype=jnp.float32),
        probs_E=jnp.where(real_N[:, None], probs_NE, 0).sum(0),
        z_loss=jnp.where(real_N, z_N, 0).sum(),
        dropped=jnp.zeros_like(z_N, shape=()),
        tokens=real_N.sum(dtype=jnp.float32),
    )
    return Routing(chosen_NKE, weights_NK, jnp.where(real_N[:, None], ids_NK, experts.count)), stats


def _in_best_groups(experts, merit_NE):
    """Returns merits with -inf outside of a token's best groups."""
    merit_NGE = merit_NE.reshape(-1, experts.groups, experts.count // experts.groups)
    best = 2 if experts.group_score == "top2" else 1
    group_NG = jax.lax.top_k(merit_NGE, best)[0].sum(-1)
    groups_NK = jax.lax.top_k(group_NG, experts.groups_per_token)[1]
    kept_NG = (groups_NK[..., None] == jnp.arange(experts.groups)).any(1)
    return jnp.where(kept_NG[..., None], merit_NGE, -jnp.inf).reshape(merit_NE.shape)


@jax.custom_vjp
def balanced_by_correction(y, correction_E, load_E):
    """Returns `y`, and gives the correction a pseudo-gradient: load - mean load.

    No loss has a gradient with respect to a bias that only affects the choice. The pseudo-gradient, whatever the loss
    and its scale, is how many tokens too many an expert got. It is linear in the load, so it adds up over micro-batches
    and devices as gradients do. An optimizer that only subtracts rate * sign(gradient) from this parameter performs the
    update of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2): down by the rate where overloaded, up where underloaded.
    A token count is not part of a gradient's norm, so clipping must exclude this parameter.
    """
    return y


def _forward(y, correction_E, load_E):
    return y, load_E


def _backward(load_E, dy):
    return dy, load_E - load_E.mean(), jnp.zeros_like(load_E)


balanced_by_correction.defvjp(_forward, _backward)
