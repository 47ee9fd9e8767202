"""Chat templates work with tokenizers of other kinds and their markers; Alpaca's prompts are the published ones."""

import functools
import json
import unicodedata

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data.batch import DataError
from data.examples.asking import Prompts
from data.examples.chat import Chat
from data.examples.conversations import conversation_of
from data.prepare import prepare
from data.tokens import tokenizer as tokenizers
from data.tokens.special import EOT, SpecialTokens
from data.tokens.templates import TEMPLATES

MARKERS = TEMPLATES["chatml"].markers
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "It is 4."}]


@pytest.fixture(scope="module")
def plain_markers(texts):
    """Returns a tokenizer whose markers are added tokens, but not special ones."""
    backend = Tokenizer.from_str(tokenizers.train(texts, "bpe", 400).to_json())
    names = [*MARKERS, "<think>", "COVID-19"]
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    return tokenizers.Tokenizer(backend)


def test_an_answer_ends_at_a_marker_that_is_no_special_token(plain_markers):
    chat = Chat(plain_markers, {"template": "chatml", "system": ""})
    ids, trained, _ = chat.encode(ANSWERED)
    assert plain_markers.decode([chat.ends[0]]) == "<|im_end|>"
    assert ids[trained][-1] == chat.ends[0]
    given = Prompts([chat.prompt(QUESTION)], None, chat.ends)
    assert given.answer(plain_markers, ids[trained]) == "It is 4."


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


# The two prompts in train.py of Stanford Alpaca's repository.
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


@pytest.mark.parametrize("given", ["", "1\n\n2", "Add."])
def test_alpaca_has_the_published_prompts(texts, given):
    words = tokenizers.train(texts, "bpe", 330)
    record = {"instruction": "Add.", "input": given, "output": "3"}
    chat, messages = Chat(words, {"template": "alpaca", "system": ""}), conversation_of(record)["messages"]
    expected = (ALPACA_INPUT if given else ALPACA_NO_INPUT).format_map(record)
    assert words.decode(chat.prompt(messages[:-1])) == expected
    assert words.decode(chat.encode(messages)[0]).strip() == expected + "3"
    later = conversation_of(record | {"history": [["Hi.", "Ho."]]})["messages"]
    text = words.decode(chat.prompt(later[:-1]))
    assert text.startswith(ALPACA_NO_INPUT.format(instruction="Hi.") + "Ho.")
    assert text.endswith(expected.partition("\n\n")[2])
    plain = Chat(words, {"template": "alpaca", "system": "Be brief."})
    assert words.decode(plain.prompt(messages[:-1])) == "Be brief.\n\n" + expected.partition("\n\n")[2]


def test_an_input_stands_behind_the_instruction_in_other_templates(plain_markers):
    record = {"instruction": "Add.", "input": "1\n2", "output": "3"}
    text = plain_markers.decode(
        Chat(plain_markers, {"template": "chatml", "system": ""}).encode(conversation_of(record)["messages"])[0]
    )
    assert "<|im_start|>user\nAdd.\n\n1\n2<|im_end|>" in text


TURNS = "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}\
{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("begin", ["<s>", ""])
@pytest.mark.parametrize("split", [False, True])
def test_spaces_of_sentencepiece_are_those_of_transformers(texts, scheme, begin, split):
    """Metaspace puts a space before a text: never, at its start only, or also after each special token."""
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


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_a_tokenizer_that_is_trained_here_gets_the_markers_of_a_template(kind, settings, tmp_path):
    lines = [json.dumps({"instruction": f"q {i}", "output": f"a {i}"}) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    tokenizer = {"kind": kind, "vocab_size": 300 if kind == "bpe" else 0, "chat": "chatml"}
    config = settings(f"chat:{tmp_path / 'a.jsonl'}", tokenizer=tokenizer, chat={"template": "chatml"}, seq_len=64)
    words = tokenizers.load(prepare(config, tmp_path / "out", log=lambda line: None).tokenizer_path)
    ids = Chat(words, {"template": "chatml", "system": ""}).prompt([{"role": "user", "content": "q 1"}])
    marked = [i for i in ids if i in words.special_ids and i != words.unknown_id]
    assert len(marked) == 3 and marked[0] == ids[0] == marked[2] != marked[1]


@pytest.mark.parametrize(
    ("tokenizer", "template", "message"),
    [
        ({}, "chatml", r"has no token '<\|im_start\|>'; set data.tokenizer.chat to 'chatml'"),
        ({"chat": "llama2"}, "gemma", r"has no token '<bos>'; set data.tokenizer.chat to 'gemma'"),
        ({}, "tokenizer", "a tokenizer that is trained here has no chat template"),
        ({"chat": "chatlm"}, "alpaca", "data.tokenizer.chat must be '' or one of chatml, .*not 'chatlm'"),
        ({"kind": "file", "path": "a.json", "chat": "chatml"}, "auto", "a file is used unchanged"),
    ],
)
def test_a_template_that_can_not_be_written_is_refused_before_the_corpus_is_read(
    settings, tmp_path, tokenizer, template, message
):
    config = settings("chat:missing.jsonl", tokenizer={"kind": "byte"} | tokenizer, chat={"template": template})
    with pytest.raises(DataError, match=message):
        prepare(config, tmp_path / "out", log=lambda line: None)


def test_words_keep_their_spaces_where_a_tokenizer_parts_them_first(texts):
    """T5's tokenizer splits words first, and then puts a space before each word instead of before the whole text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    seen = [*texts, *[message["content"] for message in ANSWERED] * 9]
    backend.train_from_iterator(
        seen, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    words = tokenizers.Tokenizer(backend, SpecialTokens(None, (1,)))
    ids, trained, _ = Chat(words, {"template": "alpaca", "system": ""}).encode(ANSWERED)
    assert ids[trained].tolist() == [*words.encode("It is 4."), 1]


# First characters of an answer that a tokenizer might merge with the last character of the prompt.
FIRST = ["\n", "\n\n", "'s", ":", " ", "  ", "\t", "7", "\u0301", "東", "🙂", "\u200d", ".", "]", "\r\n", "ﬁ", "Yes"]
JINJA = {
    "alpaca": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + "
    "'\n\n### Response:' }}{% else %}{{ m.content + eos_token + '\n\n' }}{% endif %}{% endfor %}",
    "text": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "marked": "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
}
NAMES = [EOT, *sorted({marker for template in TEMPLATES.values() for marker in template.markers})]


def hub(texts, kind: str) -> Tokenizer:
    """Returns a tokenizer like published ones: a byte-level one like GPT-2's, or one like LLaMA's in both forms."""
    if kind == "gpt2":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder, backend.normalizer = decoders.ByteLevel(), normalizers.NFC()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        alphabet = [chr(i) for i in range(32, 127)]
        if kind == "llama":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    names = [*NAMES, "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=names, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


@pytest.fixture(scope="module")
def joining(texts):
    """Returns a function from a kind to its tokenizer, which has learnt to merge a prompt's end with an answer."""
    seen = [f"e{end}{first}" * 40 for end in (":", "\n", ": ", "]", "e") for first in FIRST]
    kinds = {"bpe": 900, "byte": 0}

    def make(kind: str) -> Tokenizer:
        if kind in kinds:
            return Tokenizer.from_str(tokenizers.train([*texts, *seen], kind, kinds[kind], NAMES[1:]).to_json())
        return hub([*texts, *seen], kind)

    return functools.cache(make)


@pytest.mark.parametrize("kind", ["bpe", "byte", "gpt2", "llama", "first", "always"])
@pytest.mark.parametrize("template", [*TEMPLATES, *(f"{name} of Jinja" for name in JINJA)])
def test_what_is_trained_on_begins_where_a_model_is_asked(joining, template, kind):
    backend, name = joining(kind), template.removesuffix(" of Jinja")
    begin = backend.token_to_id(EOT)
    tokens = {"chat_template": JINJA.get(name, ""), "bos_token": EOT, "eos_token": EOT}
    words = tokenizers.Tokenizer(backend, SpecialTokens(begin, (begin,), tokenizer_config=tokens))
    own = template not in TEMPLATES
    chat = Chat(words, {"template": "auto" if own else name, "system": ""})
    for first, later in zip(FIRST, FIRST[::-1], strict=True):
        said = [f"{first} and more", f"{later}"]
        messages = [*QUESTION, {"role": "assistant", "content": said[0]}, *QUESTION]
        messages.append({"role": "assistant", "content": said[1] + "."})
        ids, trained, _ = chat.encode(messages)
        begins = [len(chat.prompt(messages[:i])) for i in (1, 3)]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], trained, [0]])))
        assert edges[::2].tolist() == begins  # every trained part begins where a prompt ends
        for i, at in zip((1, 3), begins, strict=True):
            assert chat.prompt(messages[:i]) == ids[:at].tolist()
        # The answer of a model that learnt this is the text, with no space added before it.
        for text, start, end in zip(said, edges[::2], edges[1::2], strict=True):
            given = Prompts([], None, chat.ends).answer(words, ids[start:end].tolist())
            normal = unicodedata.normalize("NFC", text).strip()
            assert given.strip().removesuffix(".").startswith(normal.removesuffix("."))
            if template not in ("llama2", "llama3", "gemma"):  # these templates add or remove spaces
                text = unicodedata.normalize("NFC", text)
                assert words.decode(ids[:start])[-1] + text in words.decode(ids)
