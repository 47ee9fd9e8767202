"""Templates over tokenizers of other kinds than those that are trained here."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data import tokenizer as tokenizers
from data.chat import Chat
from data.special_tokens import SpecialTokens
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


TURNS = "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}\
{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("begin", ["<s>", ""])
@pytest.mark.parametrize("split", [False, True])
def test_spaces_of_sentencepiece_are_those_of_transformers(texts, scheme, begin, split):
    """Metaspace puts a space before a text: nowhere, at its begin, or after each special token too."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    if split:
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, pre_tokenizers.Digits()])
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    seen = [*texts, *[message["content"] + " [INST] [/INST]" for message in ANSWERED] * 9]
    backend.train_from_iterator(
        seen, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    messages = [*ANSWERED, *ANSWERED]
    expected = theirs.apply_chat_template(messages, chat_template=begin + TURNS, return_dict=False)
    special = SpecialTokens(1, (2,), tokenizer_config={"chat_template": begin + TURNS})
    own = Chat(tokenizers.Tokenizer(backend, special), {"template": "tokenizer", "system": ""})
    assert own.encode(messages)[0].tolist() == expected
    if begin:
        named = Chat(tokenizers.Tokenizer(backend, special), {"template": "llama2", "system": ""})
        assert named.encode(ANSWERED)[0].tolist() == expected[: len(named.encode(ANSWERED)[0])]
