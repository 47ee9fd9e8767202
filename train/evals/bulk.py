"""Answers of a model to many prompts, in batches of few shapes."""

from collections.abc import Sequence

import jax
import numpy as np

from model.decode.generate import generate
from model.decode.sampling import Settings


def answers(
    model,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None,
    *,
    batch_size: int,
    max_new_tokens: int,
    ends: Sequence[int],
    vocab_size: int,
) -> list[np.ndarray]:
    """The likeliest token after the other: new ids for each prompt, up to the one that ends it.

    Prompts of like lengths come into one batch, and every batch is full, so that a program is compiled for each bucket
    of lengths that occurs (model/decode/generate.py) and no more. Runs on the mesh that is set.

    Args:
      prompts, sources: token ids, as `generate` takes them.
      batch_size: rows a batch.
      ends: tokens that end an answer.  vocab_size: tokens from this id on are never said.
    """
    lengths = [(len(ids), len(sources[i]) if sources is not None else 0) for i, ids in enumerate(prompts)]
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    found = [np.zeros(0, np.int32)] * len(prompts)
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        rows = numbers + numbers[:1] * (batch_size - len(numbers))  # the shortest again; nobody reads what it says
        out = generate(
            model,
            [prompts[i] for i in rows],
            jax.random.key(0),  # nothing is drawn
            max_new_tokens=max_new_tokens,
            settings=Settings(),
            eos_id=tuple(ends),
            vocab_size=vocab_size,
            sources=None if sources is None else [sources[i] for i in rows],
        )
        for number, ids, length in zip(numbers, out.tokens, out.lengths, strict=False):
            found[number] = ids[:length]
    return found
