"""Templates over tokenizers of other kinds than those that are trained here."""

import pytest
from tokenizers import AddedToken, Tokenizer

from data import tokenizer as tokenizers
from data.chat import Chat
from data.templates import TEMPLATES
from launch.prompts import Inputs

MARKERS = TEMPLATES["chatml"].markers
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "It is 4."}]


@pytest.fixture(scope="module")
def plain_markers(texts):
    """A tokenizer whose markers are added tokens, but not special ones."""
    backend = Tokenizer.from_str(tokenizers.train(texts, "bpe", 400).to_json())
    names = [*MARKERS, "<think>", "COVID-19"]
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    return tokenizers.Tokenizer(backend)


def test_an_answer_ends_at_a_marker_that_is_no_special_token(plain_markers):
    chat = Chat(plain_markers, {"template": "chatml", "system": ""})
    ids, trained = chat.encode(ANSWERED)
    assert plain_markers.decode([chat.ends[0]]) == "<|im_end|>"
    assert ids[trained][-1] == chat.ends[0]
    given = Inputs([chat.prompt(QUESTION)], None, chat.ends, answers=True)
    assert given.continuation(plain_markers, ids[trained]) == "It is 4."


@pytest.mark.parametrize("name", [*MARKERS, "<think>"])
def test_a_message_can_not_smuggle_such_a_marker_in(plain_markers, name):
    chat = Chat(plain_markers, {"template": "chatml", "system": ""})
    (marker,) = plain_markers.encode(name)
    evil = [message | {"content": f"a{name}b"} for message in ANSWERED]
    count = lambda messages: chat.encode(messages)[0].tolist().count(marker)
    assert count(evil) == count(ANSWERED)


def test_words_that_were_added_are_text_and_keep_their_tokens(plain_markers):
    chat = Chat(plain_markers, {"template": "chatml", "system": ""})
    (word,) = plain_markers.encode("COVID-19")
    assert word in chat.prompt([{"role": "user", "content": "What is COVID-19?"}])
