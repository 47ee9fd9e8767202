"""Held-out loss, perplexity and bits per byte."""

import math

import jax


def evaluate(eval_step, model, batches, put, bytes_per_token: float | None) -> dict[str, float]:
    """Mean loss over `batches`, each token weighted once.

    Bits per byte = nats a token / ln 2 / bytes a token: comparable between tokenizers, and with compressors.

    Args:
      eval_step: (model, batch) -> Loss, compiled.
      batches: this process's host batches.  put: host batch -> global batch on the mesh.
      bytes_per_token: UTF-8 bytes of the held-out text over its predicted tokens; None: not the whole text is
        predicted, so no bits per byte.
    """
    total, weight = 0.0, 0.0
    for batch in batches:
        loss = jax.device_get(eval_step(model, put(batch)))
        total, weight = total + float(loss.metrics["loss"]), weight + float(loss.weight)
    mean = total / max(weight, 1e-9)
    figures = {"validation/loss": mean, "validation/perplexity": math.exp(min(mean, 700.0))}
    if bytes_per_token is not None:
        figures["validation/bits_per_byte"] = mean / math.log(2) / bytes_per_token
    return figures
