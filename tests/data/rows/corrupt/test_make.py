"""Corruption of a row depends only on its place and the seed; settings and tokenizers that do not fit are refused."""

import numpy as np
import pytest

from data.batch import DataError
from data.rows.corrupt import make
from data.tokens import tokenizer as tokenizers
from data.tokens.special import EOT


def equal(first, second) -> bool:
    return set(first) == set(second) and all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", ["masked", "spans"])
def test_a_row_depends_on_its_place_and_the_seed_alone(tokenizer, packed, kind):
    corruption = make({"kind": kind}, tokenizer, 64)
    row = packed(64, 20, 300)[:1]
    rows, places = np.repeat(row, 40, axis=0), np.arange(40) * 10**12
    batch = corruption(rows, places, 5)
    assert equal(batch, corruption(rows, places, 5))
    order = np.random.default_rng(0).permutation(40)
    assert equal({key: array[order] for key, array in batch.items()}, corruption(rows[order], places[order], 5))
    assert equal({key: array[7:9] for key, array in batch.items()}, corruption(rows[7:9], places[7:9], 5))
    assert len({array.tobytes() for array in batch["targets"] * batch["weights"].astype(int)}) > 35
    assert not equal(batch, corruption(rows, places, 6))
    assert equal(corruption(rows, places, -1), corruption(rows, places, -1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mask"}, "kind must be one of none, masked, spans, not 'mask'"),
        (
            {"kind": "masked", "whole_word": True},
            r"Unknown field data.corruption.whole_word: did you mean whole_words\?",
        ),
        ({"kind": "none", "rate": 0.15}, r"Unknown field data.corruption.rate: the fields are kind."),
        ({"kind": "masked", "rate": 1.5}, "rate must be a fraction from 0 to 1, not 1.5"),
        ({"kind": "spans", "rate": 0}, "rate is 0: set data.corruption.kind to 'none'"),
        ({"kind": "masked", "random": "a"}, "random must be a fraction"),
        ({"kind": "masked", "mask": 0.8, "random": 0.3}, "random are shares .* at most 1"),
        ({"kind": "masked", "whole_words": 2}, "whole_words must be True or False, not 2"),
        ({"kind": "spans", "mean_length": 0.5}, "mean_length must be a number of at least 1, not 0.5"),
        ({"kind": "spans", "start_id": -1}, "start_id must be a token id"),
        ({"kind": "spans", "start_id": 10**6}, "start_id is 1000000, but the tokenizer has"),
        ({"kind": "spans", "mean_length": 1.0}, "up to 77 spans .* 512 tokens, but the tokenizer has 60 sentinels"),
    ],
)
def test_errors(tokenizer, settings, message):
    with pytest.raises(DataError, match=message):
        make(settings, tokenizer, 512)


def test_a_tokenizer_without_the_special_tokens():
    tokenizer = tokenizers.train([EOT], "byte")
    assert make({}, tokenizer, 32) is make({"kind": "none"}, tokenizer, 32) is None
    with pytest.raises(DataError, match=r"no mask token .*set data.tokenizer.mask to True"):
        make({"kind": "masked"}, tokenizer, 32)
    with pytest.raises(DataError, match=r"0 sentinels .*set data.tokenizer.sentinels to 2"):
        make({"kind": "spans"}, tokenizer, 32)
