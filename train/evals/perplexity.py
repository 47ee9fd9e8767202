"""Held-out loss, perplexity and bits per byte."""

import functools
import itertools
import math
from collections.abc import Iterable

import jax
import numpy as np

from train.losses import Loss


def total(eval_step, model, batches, put, companions=None) -> Loss:
    """Returns the sums of a loss over `batches`, as float64 numbers and arrays on the host.

    Args:
      eval_step: compiled (model, batch, companions) -> Loss.
      batches: host batches of this process, at least one.
      put: host batch -> global batch on the mesh.
    """
    return added(jax.device_get(eval_step(model, put(batch), companions)) for batch in batches)


def added(losses: Iterable[Loss], factors: Iterable[float] | None = None) -> Loss:
    """Returns the sum of at least one loss, each times its factor (None: 1), in float64."""
    pairs = zip(losses, factors, strict=True) if factors is not None else ((loss, 1.0) for loss in losses)
    scaled = lambda loss, factor: jax.tree.map(lambda value: np.asarray(value, float) * factor, loss)
    return functools.reduce(lambda sums, part: jax.tree.map(np.add, sums, part), itertools.starmap(scaled, pairs))


def figures(loss: Loss, bytes_per_token: float | None) -> dict[str, float]:
    """Returns the mean loss per token, the perplexity, and bits per byte and the unigram baseline where they exist.

    Bits per byte = nats per token / ln 2 / bytes per token. It compares models with different tokenizers, and models
    with compressors.

    Args:
      loss: sums over the evaluation.
      bytes_per_token: UTF-8 bytes of the held-out text divided by its predicted tokens. None if the tokens do not
        encode the whole text (it is corrupted, or the tokenizer loses some of it); then there are no bits per byte.
    """
    mean = float(loss.metrics["loss"]) / max(float(loss.weight), 1e-9)
    found = {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
    if bytes_per_token is not None:
        found["bits_per_byte"] = mean / math.log(2) / bytes_per_token
    if "unigram" in loss.metrics:
        found["unigram"] = float(loss.metrics["unigram"]) / max(float(loss.weight), 1e-9)
    return found
