"""Generates a model's answers to many prompts, in batches of few different shapes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from model.decode.generate import generate
from model.decode.sampling import Settings


class Answer(NamedTuple):
    ids: np.ndarray  # int32 [N]: the new tokens, up to and with the one that ends the answer
    logprobs: np.ndarray | None  # float32 [N]: as in Generated, if they were asked for


def answers(
    model, prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int]] | None, **how: Any
) -> list[np.ndarray]:
    """Returns the new token ids for each prompt; `how`: the other arguments of `answered`."""
    return [one.ids for one in answered(model, prompts, sources, **how)]


def answered(
    model,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
    *,
    batch_size: int,
    max_new_tokens: int,
    ends: Sequence[int],
    vocab_size: int,
    settings: Settings = Settings(),  # noqa: B008 (immutable)
    keys: jax.Array | None = None,
    logprobs: bool = False,
) -> list[Answer]:
    """Returns the answer to each prompt.

    Prompts of similar lengths share a batch, and every batch is full, so one program is compiled for each bucket of
    lengths that occurs (model/decode/generate.py). It runs on the current mesh.

    Args:
      model: a decoder or an encoder-decoder.
      prompts, sources: token ids, as for `generate`.
      batch_size: rows per batch.
      max_new_tokens: limit per answer.
      ends: ids of tokens that end an answer.
      vocab_size: ids from this one on are never generated; they pad the embedding table.
      settings: how to sample; default: greedy.
      keys: a random key for each prompt, so that its answer does not depend on which prompts share its batch; None:
        greedy decoding needs none.
      logprobs: also return log-probabilities.

    Raises:
      ValueError: sampling without keys, or as `generate`.
    """
    if keys is None and settings.temperature is not None:
        raise ValueError("sampling needs a random key for each prompt")
    lengths = [(len(ids), len(sources[i]) if sources is not None else 0) for i, ids in enumerate(prompts)]
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    found: dict[int, Answer] = {}
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        rows = numbers + numbers[:1] * (batch_size - len(numbers))  # filled up with the shortest; its copies are unused
        out = generate(
            model,
            [prompts[i] for i in rows],
            jax.random.key(0) if keys is None else keys[np.asarray(rows)],
            max_new_tokens=max_new_tokens,
            settings=settings,
            eos_id=tuple(ends),
            vocab_size=vocab_size,
            sources=None if sources is None else [sources[i] for i in rows],
            logprobs=logprobs,
        )
        for row, number in enumerate(numbers):
            part = slice(out.lengths[row])
            found[number] = Answer(out.tokens[row, part], None if out.logprobs is None else out.logprobs[row, part])
    return [found[number] for number in range(len(prompts))]
