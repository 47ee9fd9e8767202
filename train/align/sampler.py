"""Samples completions with the model that trains, on the mesh that it trains on."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from model.decode.generate import generate
from model.decode.sampling import Settings
from train.align.rounds import Sampled


def make_sampler(
    text: Callable[[np.ndarray], str],
    *,
    ends: Sequence[int],
    vocab_size: int,
    max_new_tokens: int,
    temperature: float,
    rows: int = 0,
) -> Callable[..., list[Sampled]]:
    """Returns a function (model, ids of each prompt, random key) -> completions, in the order of the prompts.

    All tokens may be sampled: top-k and top-p would change the distribution that the loss is about.

    Args:
      text: ids of an answer -> its text.
      ends: ids that end an answer.
      vocab_size: ids from here on only pad the table, and are never sampled.
      max_new_tokens: the longest answer.
      temperature: of sampling.
      rows: completions per batch; 0: all together. Prompts of similar lengths share a batch.
    """
    settings = Settings(temperature=temperature)

    def sample(model, prompts: Sequence[np.ndarray], key: jax.Array) -> list[Sampled]:
        size = rows or len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, Sampled] = {}
        for number, first in enumerate(range(0, len(order), size)):
            mine = order[first : first + size]
            filled = mine + mine[:1] * (size - len(mine))  # so that all batches have one shape; the copies are unused
            out = generate(
                model,
                [prompts[i].tolist() for i in filled],
                jax.random.fold_in(key, number),
                max_new_tokens=max_new_tokens,
                settings=settings,
                eos_id=tuple(ends),
                vocab_size=vocab_size,
                logprobs=True,
            )
            assert out.logprobs is not None
            for i, ids, length, logprobs in zip(mine, out.tokens, out.lengths, out.logprobs, strict=False):
                answer = np.asarray(ids[:length], np.int32)
                finished = int(answer[-1]) in ends
                found[i] = Sampled(answer, np.asarray(logprobs[:length], np.float32), finished, text(answer))
        return [found[i] for i in range(len(prompts))]

    return sample
