"""Answers to many prompts are those of each prompt alone, in batches of any size."""

import jax
import numpy as np
import pytest

from model.decode import sampling
from model.decode.generate import generate
from tests.model import tiny
from train.evals.bulk import answers

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22], [4] * 33, [9, 8]]
ENDS = (3, 17)
COMMON = dict(max_new_tokens=10, vocab_size=60)


def bulk(batch_size, **options):
    found = answers(tiny.drawn(tiny.LLAMA), PROMPTS, None, batch_size=batch_size, ends=ENDS, **COMMON, **options)
    return [ids.tolist() for ids in found]


def alone(key, prompt, settings):
    out = generate(tiny.drawn(tiny.LLAMA), [prompt], key, settings=settings, eos_id=ENDS, **COMMON)
    return out.tokens[0, : out.lengths[0]].tolist()


@pytest.mark.parametrize("batch_size", [2, 8])
def test_samples_do_not_depend_on_the_batch(batch_size):
    warm, keys = sampling.settings(1.5), jax.random.split(jax.random.key(1), len(PROMPTS))
    found = bulk(batch_size, settings=warm, keys=keys)
    assert found == [alone(keys[i : i + 1], prompt, warm) for i, prompt in enumerate(PROMPTS)]
    assert {len(ids) for ids in found} != {10}  # some end early
    assert np.all([ids[-1] in ENDS or len(ids) == 10 for ids in found])


def test_greedy_needs_no_keys_and_sampling_does():
    assert bulk(2) == [alone(jax.random.key(7), prompt, sampling.Settings()) for prompt in PROMPTS]
    with pytest.raises(ValueError, match="sampling needs a random key for each prompt"):
        bulk(2, settings=sampling.settings(1.0))
