"""The time to train a tokenizer and to encode grows only linearly with the length of a word."""

import random
import time

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from data.prepare import prepare
from data.tokens.long_words import LONGEST, LongWords
from data.tokens.tokenizer import train

DNA = "".join(random.Random(0).choices("ACGT", k=200_000))


def test_training_does_not_take_the_square_of_a_words_length():
    """As one word, these letters would take 40 seconds, and twice as many would take four times as long."""
    start = time.process_time()
    tokenizer = train([DNA], "bpe", 1000)
    assert time.process_time() - start < 15
    assert tokenizer.vocab_size == 1000
    assert tokenizer.decode(tokenizer.encode(DNA)) == DNA
    assert len(tokenizer.encode(DNA)) < len(DNA) / 3


@pytest.mark.parametrize("unit", ["A", " ", "=", "\n", "\t\n", "_-", "東", "a\u0301"])
def test_any_run_is_cut(unit):
    text = unit * (20_000 // len(unit))
    start = time.process_time()
    tokenizer = train([text + " the end"], "bpe", 600)
    assert time.process_time() - start < 5
    assert max(len(token) for token in Backend.from_str(tokenizer.to_json()).get_vocab()) <= 4 * LONGEST  # bytes
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_shorter_words_are_learnt_as_ever(texts):
    """Training with the library, without cutting long words, gives the same file."""
    ours = Backend.from_str(train([*texts, "x" * LONGEST], "bpe", 400).to_json())
    plain = Backend(models.BPE())
    plain.pre_tokenizer = ours.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator([*texts, "x" * LONGEST], _trainer(sorted(alphabet)))
    plain.decoder = ours.decoder
    plain.encode_special_tokens = True
    assert plain.to_str() == ours.to_str()


def _trainer(alphabet):
    from tokenizers import trainers

    return trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_encoding_takes_time_by_the_length_alone(kind):
    tokenizer = train([DNA[:20_000]], kind, 600)
    seconds = []
    for part in (DNA[:50_000], DNA):
        start = time.process_time()
        tokenizer.encode(part)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 10 * max(seconds[0], 0.05)  # the text is 4 times as long; quadratic time would be 16 times


def test_they_are_counted():
    words = LongWords()
    texts = ["short words", "a" * 256, "a" * 257 + " " + "b" * 300, "=" * 999, " " * 500 + "x", "a-" * 500]
    assert list(words.watched(texts)) == texts
    assert (words.count, words.longest) == (4, 999)


def test_they_are_said_once_at_preparation(settings, tmp_path):
    (tmp_path / "dna.txt").write_text(DNA[:3000] + "\n" + DNA[3000:5000] + "\nshort words\n" * 50)
    lines = []
    config = settings(tmp_path / "dna.txt", split="tail")
    prepare(config, tmp_path / "out", lines.append)
    prepare(config | {"seq_len": 16}, tmp_path / "out", lines.append)
    said = [line for line in lines if "longer than" in line]
    assert len(said) == 1 and said[0].startswith("2 words are longer than 256 characters (the longest has 3,000)")
