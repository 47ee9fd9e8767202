"""Estimates of the KL divergence between a policy and its reference, from the log-probabilities of sampled tokens.

    k1        log p - log q                 unbiased, may be negative
    k2        (log p - log q)^2 / 2         biased, of low variance
    k3        q / p - 1 - log(q / p)        unbiased and never negative
    k3_ratio  k3 times p / p_sampled        for losses (DeepSeek-V3.2, arXiv:2512.02556)

(J. Schulman, Approximating KL divergence, 2020.) In a loss, their gradients count: for one token, that of k1 has mean
0, those of k2 and k3_ratio are that of the KL divergence, and that of k3 is that of the reverse one. But a token also
decides which tokens follow, and no term of a loss gives it a share in the divergence of those. A KL in the reward does,
so only that ends at the policy that maximizes mean reward - beta KL (tests/train/align/test_optimum.py).
"""

ESTIMATORS = ("k1", "k2", "k3", "k3_ratio")
LARGEST = 20.0  # log-ratios are clipped to this, so that one token can't give an infinite number


def kl(name: str, logprobs, reference, ratio=None):
    """Returns an estimate for each token, of the shape of `logprobs`, with NumPy or with JAX, as the arrays are.

    Args:
      name: of ESTIMATORS.
      logprobs: log p of the sampled tokens.
      reference: log q of the same tokens.
      ratio: p / p_sampled of the same tokens, for 'k3_ratio'.
    """
    xp = logprobs.__array_namespace__()
    apart = xp.clip(logprobs - reference, -LARGEST, LARGEST)
    if name == "k1":
        return apart
    if name == "k2":
        return xp.square(apart) / 2
    k3 = xp.expm1(-apart) + apart
    return k3 if name == "k3" else ratio * k3
