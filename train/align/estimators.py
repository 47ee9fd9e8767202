"""Estimates of the KL divergence between a policy and its reference, from the log-probabilities of sampled tokens.

    k1        log p - log q                 unbiased, may be negative
    k2        (log p - log q)^2 / 2         biased, of low variance
    k3        q / p - 1 - log(q / p)        unbiased and never negative
    k3_ratio  k3 times p / p_sampled        the token's own ratio
    k3_sequence  the same with the ratio of the whole answer

(J. Schulman, Approximating KL divergence, 2020.) In a reward all of the first three may be used. In a loss, their
gradients count: for one token, that of k1 has mean 0, that of k2 and k3_ratio is that of the KL divergence, and that of
k3 is that of the reverse one. But a token also decides which tokens follow, and only k3_sequence takes the divergence
of those into account: its gradient is that of the KL divergence of whole answers, with more variance.
"""

import jax.numpy as jnp

ESTIMATORS = ("k1", "k2", "k3", "k3_ratio", "k3_sequence")
OF_LOSSES = ("k3_ratio", "k3_sequence")  # those that need a ratio, which a reward has not
LARGEST = 20.0  # log-ratios are clipped to this, so that one token can't give an infinite number


def kl(name: str, logprobs, reference, ratio=None):
    """Returns an estimate for each token, of the shape of `logprobs`; NumPy arrays and JAX arrays.

    Args:
      name: of ESTIMATORS.
      logprobs: log p of the sampled tokens.
      reference: log q of the same tokens.
      ratio: p / p_sampled of the same tokens, for OF_LOSSES.
    """
    apart = jnp.clip(logprobs - reference, -LARGEST, LARGEST)
    if name == "k1":
        return apart
    if name == "k2":
        return jnp.square(apart) / 2
    k3 = jnp.expm1(-apart) + apart
    return k3 if name == "k3" else ratio * k3
