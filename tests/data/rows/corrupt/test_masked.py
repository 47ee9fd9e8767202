"""Masked corruption has exact counts and the published shares, and masks whole words."""

from collections import Counter

import numpy as np
import pytest

from data.batch import check
from data.rows.corrupt import make
from data.rows.pack import Packer


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16, 64, 200])
@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_each_row_has_its_share_of_targets(tokenizer, packed, seq_len, rate):
    rows = packed(seq_len)
    batch = make({"kind": "masked", "rate": rate}, tokenizer, seq_len)(rows, np.arange(len(rows)), 3)
    check(batch, tokenizer.vocab_size)
    chosen = batch["weights"] > 0
    special = np.isin(rows[:, 0], tokenizer.special_ids)
    assert not chosen[special | (rows[:, 2] == 0)].any()
    np.testing.assert_array_equal(batch["tokens"][~chosen], rows[:, 0][~chosen])
    np.testing.assert_array_equal(batch["targets"], rows[:, 0])
    np.testing.assert_array_equal(batch["segment_ids"], rows[:, 2])
    for count, row in zip(chosen.sum(1), (rows[:, 2] > 0) & ~special, strict=True):
        assert count == (max(round(rate * row.sum()), 1) if row.any() else 0)


def test_shares_are_the_published_ones(tokenizer, packed):
    rows = packed(200, documents=20_000)
    batch = make({"kind": "masked"}, tokenizer, 200)(rows, np.arange(len(rows)), 0)
    old, new = batch["targets"][batch["weights"] > 0], batch["tokens"][batch["weights"] > 0]
    assert len(old) > 25_000
    masked, kept = new == tokenizer.mask_id, new == old
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    replaced = new[~masked & ~kept]
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    assert len(replaced) / len(old) == pytest.approx(0.1, abs=0.01)
    assert not np.isin(replaced, tokenizer.special_ids).any()
    ordinary = tokenizer.vocab_size - len(tokenizer.special_ids)
    assert len(set(replaced.tolist())) > 0.95 * ordinary  # drawn from the whole vocabulary
    assert Counter(replaced.tolist()).most_common(1)[0][1] < 6 * len(replaced) / ordinary
    column = np.mean(batch["weights"][: len(rows) // 4 * 4], axis=0)  # no place in the row is more likely
    assert column.std() < 0.03


def test_whole_words_are_masked_wholly(tokenizer, texts):
    documents = [np.array(ids) for ids in tokenizer.encode_batch(texts)]
    rows = Packer(128, tokenizer.eot_id, np.dtype("<u2")).add(documents).astype(np.int32)
    settings = {"kind": "masked", "whole_words": True}
    batch = make(settings, tokenizer, 128)(rows, np.arange(len(rows)), 0)
    plain = make({"kind": "masked"}, tokenizer, 128)(rows, np.arange(len(rows)), 0)
    sizes, first_bytes = Counter(), {tokenizer.encode(char)[0] for char in "東京"}
    for tokens, segments, weights in zip(rows[:, 0], rows[:, 2], batch["weights"], strict=True):
        words, previous = [], None
        for token, segment, weight in zip(tokens, segments, weights, strict=True):
            if token == tokenizer.eot_id:
                previous = None
                continue
            text = tokenizer.decode([token])
            chinese = text[0] in "東京" or token in first_bytes
            if previous == segment and (text[0].isalpha() or text[0] == "\ufffd") and not chinese:
                words[-1].append(weight)
            else:
                words.append([weight])
            previous = segment
        assert all(len(set(word)) == 1 for word in words)
        sizes.update(len(word) for word in words if word[0])
    assert sizes[1] and sum(count for size, count in sizes.items() if size > 1) > 20
    assert (batch["weights"].sum(1) <= plain["weights"].sum(1)).all()
    assert batch["weights"].sum() > 0.98 * plain["weights"].sum()


def test_a_row_that_is_one_long_word_is_masked_wholly(tokenizer):
    letter = tokenizer.encode("a")[0]
    rows = Packer(16, tokenizer.eot_id, np.dtype("<u2")).add([np.full(15, letter)]).astype(np.int32)
    batch = make({"kind": "masked", "whole_words": True}, tokenizer, 16)(rows, np.arange(1), 0)
    np.testing.assert_array_equal(batch["weights"], [[0] + [1] * 15])
