"""Span corruption has T5's counts, loses no token, and mixes no documents."""

from collections import Counter
from itertools import chain, groupby, pairwise, product

import numpy as np
import pytest

from data.batch import DataError, check
from data.rows.corrupt import make
from data.rows.pack import Packer
from data.rows.spans import decoder_length, span_counts


def pieces(tokens, segments) -> dict[int, list[int]]:
    """Returns {segment: its tokens} of a row; checks that segments are contiguous and ordered, before any padding."""
    pairs = zip(tokens, segments, strict=True)
    found = [(key, [int(token) for token, _ in group]) for key, group in groupby(pairs, lambda pair: pair[1])]
    ids = [int(key) for key, _ in found]
    real = [key for key in ids if key]
    assert real == sorted(set(real)) and ids in (real, real + [0])
    return {int(key): tokens for key, tokens in found if key}


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean_length", [1.0, 3.0, 10.0])
def test_counts_are_those_of_t5(rate, mean_length):
    for length in range(2, 600):
        noise = min(max(round(length * rate), 1), length - 1)
        spans = max(round(min(noise, length - noise) / mean_length), 1)
        assert [int(count) for count in span_counts(length, rate, mean_length)] == [noise, spans]
        assert decoder_length(length, rate, mean_length) in range(noise + 2 * spans, noise + 2 * spans + 8)
        assert decoder_length(length, rate, mean_length) % 8 == 0
    assert [count.tolist() for count in span_counts(np.arange(2), rate, mean_length)] == [[0, 0], [0, 0]]


def cut_spans(batch, row: int, tokenizer) -> list[int]:
    """Returns the lengths of a row's spans, from the decoder's targets."""
    targets = batch["targets"][row][batch["segment_ids"][row] > 0].tolist()
    marks = [i for i, token in enumerate(targets) if token in tokenizer.sentinel_ids or token == tokenizer.eot_id]
    return [after - mark - 1 for mark, after in pairwise(marks) if targets[mark] != tokenizer.eot_id]


def test_a_row_of_one_document_has_the_counts(tokenizer):
    rows = np.zeros((50, 3, 200), np.int32)
    for i, row in enumerate(rows, 2):
        row[1, :i], row[2, :i] = tokenizer.vocab_size - 1, 1
    batch = make({"kind": "spans"}, tokenizer, 200)(rows, np.arange(50), 1)
    for i in range(50):
        noise, spans = span_counts(i + 2, 0.15, 3.0)
        lengths = cut_spans(batch, i, tokenizer)
        assert (sum(lengths), len(lengths)) == (noise, spans)


def test_every_division_into_spans_is_as_likely(tokenizer):
    """Of 7 tokens, 3 are noise in 2 spans: there are 3 ways to divide the text and 2 to divide the noise."""
    letters = np.arange(7) + tokenizer.vocab_size - 7
    rows = np.zeros((6000, 3, 7), np.int32)
    rows[:, 1], rows[:, 2] = letters, 1
    batch = make({"kind": "spans", "rate": 0.45, "mean_length": 1.5}, tokenizer, 7)(rows, np.arange(6000), 0)
    expected = set()
    for text, noise in product([(1, 3), (2, 2), (3, 1)], [(1, 2), (2, 1)]):
        first, second = text[0], text[0] + noise[0] + text[1]
        expected.add((*range(first, first + noise[0]), *range(second, second + noise[1])))
    found = Counter(tuple(i for i, letter in enumerate(letters) if letter in row) for row in batch["targets"])
    assert set(found) == expected
    assert all(abs(count - 1000) < 120 for count in found.values())


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16, 64, 200])
@pytest.mark.parametrize(("rate", "mean_length"), [(0.15, 3.0), (0.5, 20.0), (0.9, 4.0)])
def test_decoder_and_encoder_give_back_the_documents(tokenizer, packed, seq_len, rate, mean_length):
    rows = np.concatenate([packed(seq_len, seed=1), packed(seq_len, 20, 300, seed=2), np.zeros((1, 3, seq_len), int)])
    settings = {"kind": "spans", "rate": rate, "mean_length": mean_length}
    batch = make(settings, tokenizer, seq_len)(rows, np.arange(len(rows)), 0)
    check(batch, tokenizer.vocab_size)
    assert batch["encoder_tokens"].shape == (len(rows), seq_len)
    assert batch["tokens"].shape == (len(rows), decoder_length(seq_len, rate, mean_length))
    np.testing.assert_array_equal(batch["weights"], batch["segment_ids"] > 0)
    sentinels = tokenizer.sentinel_ids
    taken_out = 0
    for i, (_, tokens, segments) in enumerate(rows):  # the encoder reads the targets of the packed row
        encoder = pieces(batch["encoder_tokens"][i], batch["encoder_segment_ids"][i])
        decoder = pieces(batch["targets"][i], batch["segment_ids"][i])
        inputs = pieces(batch["tokens"][i], batch["segment_ids"][i])
        documents = pieces(tokens, segments)
        assert set(encoder) == set(documents) and set(decoder) <= set(documents)
        for segment, document in documents.items():
            spans, target = {}, decoder.get(segment, [tokenizer.eot_id])
            assert target[-1] == tokenizer.eot_id
            for token in target[:-1]:
                if token in sentinels:
                    assert token == sentinels[len(spans)]  # numbered from 0 in each document
                    spans[token] = []
                else:
                    spans[sentinels[len(spans) - 1]].append(token)
            assert all(spans.values()) and tokenizer.eot_id not in chain(*spans.values())
            assert [token for token in encoder[segment] if token in sentinels] == list(spans)
            assert [*chain(*(spans.get(token, [token]) for token in encoder[segment]))] == document
            assert (segment in decoder) == bool(spans)
            if spans:
                assert inputs[segment] == [tokenizer.eot_id, *target[:-1]]
            taken_out += sum(map(len, spans.values()))
        for side, segmented in (("encoder_", encoder), ("", decoder)):
            offsets = pieces(batch[f"{side}positions"][i], batch[f"{side}segment_ids"][i])
            assert all(offsets[key] == list(range(len(value))) for key, value in segmented.items())
    text = ((rows[:, 2] > 0) & (rows[:, 1] != tokenizer.eot_id)).sum(1)
    assert taken_out <= span_counts(text, rate, mean_length)[0].sum()
    if (rate, seq_len) == (0.15, 200):
        assert taken_out == span_counts(text, rate, mean_length)[0].sum()  # all spans fit


def test_spans_that_do_not_fit_stay_in_the_encoder(tokenizer):
    """12 of 16 tokens in one span over 12 documents become 12 spans; the decoder has room for 10, 3 tokens each."""
    letter, sentinel = tokenizer.encode("a")[0], tokenizer.sentinel_ids[0]
    rows = Packer(32, tokenizer.eot_id, np.dtype("<u2")).add([np.array([letter])] * 16).astype(np.int32)
    batch = make({"kind": "spans", "rate": 0.75, "mean_length": 16.0}, tokenizer, 32)(rows, np.arange(1), 0)
    assert batch["targets"][0].tolist() == [sentinel, letter, tokenizer.eot_id] * 10 + [0, 0]
    text = batch["encoder_tokens"][0, 0::2].tolist()
    assert text == [letter] * 4 + [sentinel] * 10 + [letter] * 2


def test_an_encoder_reads_in_training_what_it_reads_when_prompted(tokenizer):
    """The encoder reads the text and its end token; a sentinel takes the place of a span."""
    text = "the cat sat on the mat"
    row = Packer(32, tokenizer.eot_id, np.dtype("<u2"))
    row.add([np.array(tokenizer.encode(text))])
    batch = make({"kind": "spans"}, tokenizer, 32)(row.flush().astype(np.int32), np.arange(1), 0)
    real = batch["encoder_segment_ids"][0] > 0
    found = batch["encoder_tokens"][0][real].tolist()
    (place,) = (found.index(i) for i in tokenizer.sentinel_ids if i in found)
    before, after = (tokenizer.decode(ids) for ids in (found[:place], found[place + 1 : -1]))
    inputs = tokenizer.inputs([f"{before}<extra_id_0>{after}"], encoder=True)
    assert inputs == {"prompts": [[tokenizer.eot_id]], "sources": [found]}
    filled = batch["targets"][0][batch["segment_ids"][0] > 0]
    shown = tokenizer.decode_spans(filled)
    assert shown.startswith("<extra_id_0>") and before + shown.removeprefix("<extra_id_0>") + after == text
    with pytest.raises(DataError, match="has <extra_id_77>, but the tokenizer has 60 sentinels"):
        tokenizer.inputs(["<extra_id_77>"], encoder=True)


def test_another_start(tokenizer, packed):
    rows = packed(64)
    batch = make({"kind": "spans", "start_id": 7}, tokenizer, 64)(rows, np.arange(len(rows)), 0)
    first = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
    assert (batch["tokens"][first] == 7).all() and first.sum() > len(rows)
    assert not batch["tokens"][batch["segment_ids"] == 0].any()
