"""Pairs that are longer than a row are cut, and packed with others."""

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from data.batch import CONTENT, ENCODER_CONTENT
from data.examples import pairs
from data.examples.example import Context
from data.tokens import tokenizer as tokenizers
from data.tokens.special import EOT

NEWS, HEADLINE = "First the main news. And then all the rest of it, xxx xxx", "News"


@pytest.fixture(scope="module")
def words():
    return tokenizers.train(["summarize: the news and then all the rest of it"] * 9, "bpe", 300)


def cut(words, seq_len, encoder, target=HEADLINE):
    settings = pairs.FIELDS | {"prefix": "summarize: "}
    encoding = pairs.KIND.encoding(settings, Context(words, seq_len, encoder, lambda: iter(())))
    example = encoding.encode({"source": NEWS, "target": target})
    return encoding.cut(example, seq_len, words.special.begin)


def test_a_source_is_cut_as_by_transformers(words):
    """transformers' scripts for translation and summarization truncate with tokenizer(prefix + source, max_length)."""
    backend = tokenizers.Backend.from_str(words.to_json())
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOT}", special_tokens=[(EOT, words.eot_id)])
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOT)
    expected = theirs("summarize: " + NEWS, max_length=24, truncation=True)["input_ids"]
    found = cut(words, 24, True)
    assert found.source.tolist() == expected and len(expected) == 24
    content = found.source_marks == ENCODER_CONTENT
    assert words.decode(found.source[~content]).strip() == "summarize:"
    assert NEWS.startswith(words.decode(found.source[content]).strip()) and not content[-1] and content[-2]
    assert words.decode(found.targets) == HEADLINE and found.trained.all()


def test_a_decoder_reads_the_start_of_a_source(words):
    found = cut(words, 24, False)
    target = [*words.encode(HEADLINE), words.eot_id]
    read = 25 - len(target)
    whole = [words.special.begin, *words.encode(f"summarize: {NEWS}\n")]
    assert found.tokens.tolist() == whole[: read - 1] + whole[-1:] + target[:-1]
    assert found.targets[found.trained].tolist() == target
    assert np.flatnonzero(found.trained).tolist() == [*range(read - 1, 24)]
    assert not (found.marks & CONTENT)[read - 1 :].any() and (found.marks & CONTENT)[read - 2]


def test_a_long_target_leaves_a_quarter_to_its_source(words):
    found = cut(words, 24, False, target=HEADLINE * 30)
    whole = [words.special.begin, *words.encode(f"summarize: {NEWS}\n")]
    assert found.tokens[:6].tolist() == whole[:5] + whole[-1:]
    assert found.targets[5:].tolist() == words.encode(HEADLINE * 30)[:19] and found.trained[5:].all()
    alone = cut(words, 24, True, target=HEADLINE * 30)
    assert alone.targets.tolist() == words.encode(HEADLINE * 30)[:24]
