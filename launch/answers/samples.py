"""Samples several answers to each of many prompts.

The random key of an answer is made from the numbers of its prompt and of the sample, so an answer depends neither on
the prompts around it nor on where a run was stopped. Another batch size changes only the rounding of float32, which
could change a token where two are almost equally likely.

Prompts are answered in windows of some batches. In a window, prompts of similar lengths share a batch
(train/evals/bulk.py); a window is also what a kill can lose.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from launch.answers.completion import Completion
from train.evals.bulk import answers

_BATCHES = 8  # in a window


class Answer(NamedTuple):
    text: str
    finished: bool  # the model ended it; False: it was cut at max_new_tokens
    tokens: int  # that were generated, with the end token


def windows(prompts: int, samples: int, batch_size: int) -> Iterator[range]:
    """Yields ranges of prompts that are answered together."""
    size = max(_BATCHES * batch_size // samples, 1)
    for begin in range(0, prompts, size):
        yield range(begin, min(begin + size, prompts))


def sampled(
    model, batch: Sequence[Completion], numbers: Sequence[int], samples: int, seed: int, batch_size: int
) -> list[list[Answer]]:
    """Returns `samples` answers to each completion, generated on the current mesh.

    Args:
      model: a decoder or an encoder-decoder.
      batch: completions whose requests differ only in their prompts.
      numbers: a number for each of them, from which its random keys are made.
      samples: how many answers each gets.
      seed: the same seed gives the same answers.
      batch_size: rows that are generated together.
    """
    first, rows = batch[0], [completion for completion in batch for _ in range(samples)]
    sources = [completion.source for completion in rows if completion.source is not None]
    found = answers(
        model,
        [completion.prompt for completion in rows],
        sources or None,
        batch_size=batch_size,
        max_new_tokens=first.request.max_new_tokens,
        ends=first.ends,
        vocab_size=first.tokenizer.vocab_size,
        settings=first.request.settings,
        keys=_keys(seed, np.repeat(numbers, samples), np.tile(np.arange(samples), len(batch))),
    )
    read = [
        Answer(completion.text([int(i) for i in ids]), bool(len(ids)) and int(ids[-1]) in completion.ends, len(ids))
        for completion, ids in zip(rows, found, strict=True)
    ]
    return [read[begin : begin + samples] for begin in range(0, len(read), samples)]


def _keys(seed: int, prompts, samples) -> jax.Array:
    """Returns a random key for each pair of a prompt's number and a sample's number."""
    fold = jax.vmap(lambda prompt, sample: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), prompt), sample))
    return fold(np.asarray(prompts, np.uint32), np.asarray(samples, np.uint32))
