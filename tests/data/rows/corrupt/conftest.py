"""A tokenizer with all special tokens, and rows of random documents."""

import numpy as np
import pytest

from data.rows.pack import Packer
from data.tokens import tokenizer as tokenizers


@pytest.fixture(scope="session")
def tokenizer(texts):
    return tokenizers.train(texts, "bpe", 420, tokenizers.specials(mask=True, sentinels=60))


@pytest.fixture(scope="session")
def packed(tokenizer):
    """Returns rows [N, 3, T] of random documents, many of them tiny or empty; the last row is padded."""

    def packed(seq_len: int, documents: int = 60, longest: int = 40, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
        lengths = random.choice([0, 1, 2, 3, longest], documents) + random.integers(0, 3, documents)
        packer = Packer(seq_len, tokenizer.eot_id, np.dtype("<u2"))
        ready = packer.add([random.choice(ordinary, length) for length in lengths])
        return np.concatenate([ready, packer.flush()]).astype(np.int32)

    return packed
