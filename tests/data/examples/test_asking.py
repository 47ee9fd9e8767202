"""A prompt to a model equals what comes before the answer in training, and answers are read back the same way."""

import json

import numpy as np
import pytest

from data.batch import DataError
from data.examples import kinds
from data.examples.asking import Prompts
from data.examples.example import Context
from data.prepare import prepare
from data.tokens import tokenizer as tokenizers

CHAT = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2, too")]
MESSAGES = [{"role": role, "content": content} for role, content in CHAT]
RECORDS = {"chat": {"messages": MESSAGES}, "pairs": {"source": "one", "target": "eins"}}
SETTINGS = kinds.checked({"pairs": {"prefix": "translate: "}, "chat": {"template": "alpaca"}})
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ tools | tojson }}{{ m.content }}|{% else %}"
    "({{ m.reasoning_content }}){{ m.content }}{{ (m.tool_calls or []) | tojson }}<|endoftext|>{% endif %}"
    "{% endfor %}"
)


@pytest.fixture
def words():
    return tokenizers.train(["a"], "byte")


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("name", RECORDS)
def test_a_question_is_what_stood_before_the_answer_in_training(name, encoder, words):
    kind, settings, record = kinds.KINDS[name], SETTINGS[name], RECORDS[name]
    example = kind.encoding(settings, Context(words, 256, encoder, None)).encode(record)
    begins = max(np.flatnonzero(~example.trained), default=-1) + 1  # the token that predicts the answer's first token
    given = kind.asking.prompts(settings, words, [kind.asking.question(record)], encoder)
    assert given.prompts == [example.tokens[: begins + 1].tolist()]
    assert given.sources == ([example.source.tolist()] if encoder else None)
    said = example.targets[begins:].tolist()
    assert said[-1] in given.ends
    assert given.answer(words, said) == given.answer(words, said[:-1]) == kind.asking.reference(settings, words, record)
    assert given.keeps_start == (name == "pairs")


@pytest.mark.parametrize("name", RECORDS)
def test_what_a_user_says_is_asked_as_a_record_is(name, words):
    asking, settings = kinds.KINDS[name].asking, SETTINGS[name]
    record = {"source": "one?", "target": "1"} if name == "pairs" else {"messages": MESSAGES[:2]}
    both = [asking.of_text("one?", ""), asking.question(record)]
    given = asking.prompts(settings, words, both, False).prompts
    assert given[0] == given[1]
    assert [asking.shown(question) for question in both] == ["one?"] * 2


def test_a_system_text_is_for_conversations_alone(words):
    question = kinds.KINDS["chat"].asking.of_text("one?", "Be brief.")
    assert [message["role"] for message in question.messages] == ["system", "user"]
    (prompt,) = kinds.KINDS["chat"].asking.prompts(SETTINGS["chat"], words, [question], False).prompts
    assert "Be brief." in words.decode(prompt)
    with pytest.raises(ValueError, match="no system text"):
        kinds.KINDS["pairs"].asking.of_text("one", "Be brief.")


def test_of_a_conversation_the_last_answer_that_is_trained_on_is_asked(words):
    asking = kinds.KINDS["chat"].asking
    record = {"messages": [*MESSAGES[:3], MESSAGES[3] | {"train": False}]}
    assert asking.question(record).messages == MESSAGES[:1]
    assert asking.reference(SETTINGS["chat"], words, record) == "1"
    assert asking.shown(asking.question(RECORDS["chat"])) == "user: one?\nassistant: 1\nuser: two?"
    none = {"messages": [message | {"train": False} for message in MESSAGES]}
    assert asking.question(none) is None


def test_a_reference_with_thoughts_and_calls_is_all_that_a_model_would_say(words):
    words.special.tokenizer_config["chat_template"] = TEMPLATE
    settings, asking = SETTINGS["chat"] | {"template": "auto"}, kinds.KINDS["chat"].asking
    call, tools = {"name": "f", "arguments": {"b": 1, "a": 2}}, [{"name": "f", "about": ""}]
    answer = MESSAGES[1] | {"reasoning_content": "hm", "tool_calls": [call]}
    record = {"messages": [MESSAGES[0], answer], "tools": tools}
    (prompt,) = asking.prompts(settings, words, [asking.question(record)], False).prompts
    assert words.decode(prompt) == f"{json.dumps(tools)}one?|"
    assert asking.reference(settings, words, record) == f"(hm)1{json.dumps([call])}"


def test_what_a_template_writes_before_an_answer_is_no_part_of_it(words):
    ids = words.encode("<think></think>yes")
    given = Prompts([], None, (words.eot_id,), lead="<think></think>")
    assert given.answer(words, [*ids, words.eot_id]) == given.answer(words, ids) == "yes"
    assert given.answer(words, []) == ""


def test_labels_are_not_answered_in_words():
    assert kinds.KINDS["labels"].asking is None


@pytest.mark.parametrize(
    ("wanted", "encoder", "message"), [(False, True, "but the model is an"), (True, False, "is not one")]
)
def test_a_kind_may_need_an_encoder_or_none(tmp_path, settings, monkeypatch, wanted, encoder, message):
    monkeypatch.setitem(kinds.KINDS, "pairs", kinds.KINDS["pairs"]._replace(encoder=wanted))
    (tmp_path / "a.jsonl").write_text('{"source": "a", "target": "b"}\n' * 20)
    config, said = settings(f"pairs:{tmp_path}/a.jsonl", tokenizer={"kind": "byte"}), []
    with pytest.raises(DataError, match=f"Sources pairs:GLOB are for .*{message}"):
        prepare(config, tmp_path / "out", said.append, encoder=encoder)
    assert not said  # the error comes before any work
    prepare(config, tmp_path / "out", said.append, encoder=not encoder)


def test_what_has_no_word_without_a_target_is_not_augmented(tmp_path, settings, monkeypatch):
    kind = kinds.KINDS["pairs"]._replace(augmentable=lambda block: bool(block["prefix"]))
    monkeypatch.setitem(kinds.KINDS, "pairs", kind)
    (tmp_path / "a.jsonl").write_text('{"source": "a", "target": "b"}\n' * 20)
    changes = {"tokenizer": {"kind": "byte"}, "augment": {"swap": 0.1}}
    with pytest.raises(DataError, match="there is nothing to change"):
        prepare(settings(f"pairs:{tmp_path}/a.jsonl", **changes), tmp_path / "out", lambda line: None)
    config = settings(f"pairs:{tmp_path}/a.jsonl", **changes, pairs={"prefix": "Q: "})
    prepare(config, tmp_path / "out", lambda line: None)
