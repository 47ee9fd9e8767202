"""Texts with labels become the ids that transformers' tokenizers give."""

import json

import pytest
import transformers

from data.batch import check
from data.examples.label_reader import Reader, Reading
from data.pipeline import train_pipeline
from data.prepare import prepare
from data.rows import augment
from data.tokens import hub
from data.tokens import tokenizer as tokenizers
from data.tokens.special import SpecialTokens

ODD = ["\u200b", "hello", "\ufe0f", " hellos", "\x96", "a", "\u0301"]


def test_a_word_without_a_token_gets_no_label_as_in_transformers(bert):
    tokenizer = hub.read(bert, {"model_type": "bert"})
    found = Reader(tokenizer, "first", 16).words(ODD)
    expected = transformers.AutoTokenizer.from_pretrained(bert)(ODD, is_split_into_words=True)
    assert found.ids == expected["input_ids"]
    of_words = expected.word_ids()
    assert found.places == [of_words.index(i) if i in of_words else None for i in range(len(ODD))]
    assert found.lost == 4 and found.whole
    cut = Reader(tokenizer, "first", 4).words(ODD)
    assert cut == Reading(found.ids[:3] + [3], [None, 1, None, 2, None, None, None], None, 4, False)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_two_texts_are_read_and_cut_as_in_transformers(family, request):
    folder = request.getfixturevalue(family)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = hub.read(folder, {"model_type": family})
    for length in range(6, 24):
        reader = Reader(tokenizer, "first", length)
        for text, pair in (("a b a", "b"), ("a b " * 5, "b a x"), ("a", "x b " * 6), ("a b " * 6, "b x " * 6)):
            expected = theirs(text, pair, truncation="longest_first", max_length=length)
            found = reader.text(text, pair)
            assert found.ids == expected["input_ids"]
            assert found.whole == (len(theirs(text, pair)["input_ids"]) <= length)
            if family == "bert":
                assert [int(i >= found.second) for i in range(len(found.ids))] == expected["token_type_ids"]


def test_two_texts_have_an_end_between_them_where_the_tokenizer_says_nothing():
    backend = tokenizers.train([], "byte")._backend
    tokenizer = tokenizers.Tokenizer(backend, SpecialTokens(None, (0,)))
    both = [*tokenizer.encode("a b"), 0, *tokenizer.encode("c")]
    assert Reader(tokenizer, "last", 16).text("a b", "c") == Reading(both, [4], 4)
    assert Reader(tokenizer, "first", 16).text("a b", "c") == Reading([*both, 0], [0], 4)
    with pytest.raises(ValueError, match="rows of 2 tokens have no room for two texts"):
        Reader(tokenizer, "first", 2).text("a b", "c")


def test_a_tokenizer_trained_here_is_exported_with_what_stands_between_two_texts(tmp_path):
    tokenizer = tokenizers.train([], "byte")
    for name, content in hub.files(tokenizer).items():
        (tmp_path / name).write_text(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = [tokenizer.eot_id, *tokenizer.encode("a b"), tokenizer.eot_id, *tokenizer.encode("c")]
    assert Reader(tokenizer, "last", 16).text("a b", "c").ids == theirs("a b", "c")["input_ids"] == expected


def test_two_texts_of_an_example_are_texts_of_their_own(settings, tmp_path):
    """A word is swapped only with words of its own text, and deletion leaves at least one word of each text."""
    rows = [{"text": "a bb ccc dddd", "other": "e ff ggg hhhh", "label": i % 2} for i in range(100)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    block = {"pair": "other", "read": "first"}
    changes = dict(format="labels", path=str(tmp_path / "pairs.jsonl"), labels=block, seq_len=64)
    prepared = prepare(settings(**changes, tokenizer={"kind": "byte"}), tmp_path, log=lambda line: None)
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    found = set()
    for rates in ({"swap": 0.5}, {"delete": 0.9}):
        pipeline = train_pipeline(prepared, 8, 0, augmentation=augment.make(rates, tokenizer))
        batch = pipeline.next()
        pipeline.close()
        check(batch, tokenizer.vocab_size, prepared.channels)
        for ids, segments, types in zip(batch["tokens"], batch["segment_ids"], batch["token_types"], strict=True):
            for segment in range(1, segments.max() + 1):
                texts = [tokenizer.decode(ids[(segments == segment) & (types == i)]).split() for i in (0, 1)]
                assert set(texts[0]) <= {"a", "bb", "ccc", "dddd"} and set(texts[1]) <= {"e", "ff", "ggg", "hhhh"}
                assert all(len(text) == 4 if "swap" in rates else text for text in texts)
                found.add(str(texts))
    assert len(found) > 8
