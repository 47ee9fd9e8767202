"""Samples completions with the model that trains, on the mesh that it trains on."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from model.decode.sampling import Settings
from train.align.rounds import Sampled
from train.evals.bulk import answered


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
      rows: completions per batch, which changes only the rounding of their logits; 0: all together.
    """
    settings = Settings(temperature=temperature)

    def sample(model, prompts: Sequence[np.ndarray], key: jax.Array) -> list[Sampled]:
        found = answered(
            model,
            [ids.tolist() for ids in prompts],
            batch_size=rows or len(prompts),
            max_new_tokens=max_new_tokens,
            ends=ends,
            vocab_size=vocab_size,
            settings=settings,
            keys=jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(prompts))),
            logprobs=True,
        )
        return [Sampled(one.ids, np.asarray(one.logprobs), int(one.ids[-1]) in ends, text(one.ids)) for one in found]

    return sample
