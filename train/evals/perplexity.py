"""Held-out loss, perplexity and bits per byte."""

import math
from collections.abc import Iterable

import jax
import numpy as np

from train.losses import Loss


def total(eval_step, model, batches, put, companions=None) -> Loss:
    """The sums of a loss over `batches`, as numbers and NumPy arrays on the host.

    Args:
      eval_step: (model, batch, companions) -> Loss, compiled.
      batches: this process's host batches.  put: host batch -> global batch on the mesh.
    """
    return added(jax.device_get(eval_step(model, put(batch), companions)) for batch in batches)


def added(losses: Iterable[Loss], factors: Iterable[float] | None = None) -> Loss:
    """The sum of losses, each times its factor (None: 1), in float64."""
    sums = None
    for loss, factor in zip(losses, factors, strict=True) if factors is not None else ((loss, 1.0) for loss in losses):
        part = jax.tree.map(lambda value, factor=factor: np.asarray(value, float) * factor, loss)
        sums = part if sums is None else jax.tree.map(np.add, sums, part)
    return sums


def figures(loss: Loss, bytes_per_token: float | None) -> dict[str, float]:
    """Mean loss, each token weighted once, and what follows from it.

    Bits per byte = nats a token / ln 2 / bytes a token: comparable between tokenizers, and with compressors.

    Args:
      bytes_per_token: UTF-8 bytes of the held-out text over its predicted tokens; None where the tokens do not say the
        whole text (it is corrupted, or the tokenizer loses some of it): there are no bits per byte then.
    """
    mean = float(loss.metrics["loss"]) / max(float(loss.weight), 1e-9)
    found = {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
    if bytes_per_token is not None:
        found["bits_per_byte"] = mean / math.log(2) / bytes_per_token
    if "unigram" in loss.metrics:
        found["unigram"] = float(loss.metrics["unigram"]) / max(float(loss.weight), 1e-9)
    return found
