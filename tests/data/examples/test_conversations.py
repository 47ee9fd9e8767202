"""Records of conversations are read in all published forms, and others get a clear error."""

import json
import re

import numpy as np
import pytest

from data.batch import TRAINED, DataError, marked
from data.examples.conversations import conversation_of
from data.prepare import prepare
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers

CALL = {"type": "function", "function": {"name": "f", "arguments": {"z": None, "a": 1}}}
USER, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def messages_of(record):
    return conversation_of(record)["messages"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, "user q assistant a"),
        ({"instruction": "q", "input": "i", "output": "a", "system": "s"}, "system s user q\n\ni assistant a"),
        ({"instruction": "q", "output": "a", "history": [["x", "y"]]}, "user x assistant y user q assistant a"),
        ({"messages": [{"role": "developer", "content": "s"}, USER, SAID]}, "system s user q assistant a"),
        ({"messages": [USER, SAID | {"content": [{"type": "text", "text": "b"}]}, USER]}, "user q assistant b"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "system s user q assistant a",
        ),
    ],
)
def test_records_of_every_form_become_messages(record, expected):
    assert " ".join(f"{message['role']} {message['content']}" for message in messages_of(record)) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "q"}, "no conversation, only text; a record has instruction and output"),
        ({"instruction": "q"}, '"instruction" without "output"'),
        ({"instruction": "q", "output": " "}, "an answer is empty"),
        ({"instruction": "", "output": "a"}, "a question is empty"),
        ({"instruction": 3, "output": "a"}, '"instruction" is not a string but int'),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, '"history" is not a list of pairs'),
        ({"messages": []}, '"messages" has no messages'),
        ({"messages": [USER]}, "no message is an answer"),
        ({"messages": [USER, {"role": "observation", "content": "x"}]}, "message 2 has the unknown role 'observation'"),
        ({"messages": [USER | {"role": ["user"]}, SAID]}, r"message 1 has the unknown role \['user'\]"),
        ({"messages": [SAID, USER, SAID]}, "the first message is an answer"),
        ({"messages": [USER, USER, SAID]}, "don't alternate"),
        ({"messages": [USER, {"role": "system", "content": "s"}, SAID]}, "it must be the first"),
        ({"messages": [USER, {"role": "assistant"}]}, 'message 2: it has neither "content" nor "tool_calls"'),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]}, "parts that are not text"),
        ({"conversations": ["q"]}, "message 1 is not an object but str"),
        ({"messages": [{"role": "tool", "content": "x"}, SAID]}, "the first message is the result of a tool"),
        ({"messages": [USER, {"role": "tool", "content": "x"}, SAID]}, "does not follow an answer with"),
        ({"messages": [USER, SAID, {"role": "tool", "content": "x"}, SAID]}, "does not follow an answer with"),
        ({"messages": [USER | {"tool_calls": [CALL]}, SAID]}, 'message 1: only an answer can have "tool_calls"'),
        ({"messages": [USER, SAID | {"tool_calls": "f()"}]}, 'message 2: "tool_calls" is not a list of'),
        ({"messages": [USER, SAID | {"tool_calls": [{"function": "f"}]}]}, 'message 2: "tool_calls" is not a list of'),
        ({"messages": [USER, SAID | {"reasoning_content": 1}]}, '"reasoning_content" is not a string but int'),
        ({"messages": [USER, SAID], "conversations": [USER, SAID]}, 'has both "messages" and "conversations"'),
        ({"messages": [USER, SAID], "tools": "[]"}, '"tools" is not a list of objects but str'),
        ({"messages": [USER, SAID], "tools": ["f"]}, '"tools" is not a list of objects'),
        ({"messages": [USER, SAID], "functions": [CALL]}, '"functions" is not read'),
        ({"messages": [USER, SAID], "reasoning_content": "hm"}, '"reasoning_content" is outside the messages'),
        ({"instruction": "q", "output": "a", "reasoning_content": "hm"}, '"reasoning_content" is outside'),
        ({"messages": [{"role": "system", "content": "s"}, USER, SAID], "system": "t"}, "two different system texts"),
    ],
)
def test_what_is_no_conversation_says_why(record, message):
    with pytest.raises(ValueError, match=message):
        messages_of(record)


FORMS = {
    "instruction": {"instruction": "q", "input": "i", "output": "a"},
    "messages": {"messages": [USER, SAID]},
    "conversations": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_field_that_is_null_counts_as_absent(form):
    """A table with a column for every field of every form has many nulls."""
    record, own = FORMS[form], {form}
    names = ["messages", "conversations", "instruction", "output", "system", "input", "history", "tools", "weight"]
    names = [name for name in names if name not in record and name not in own]
    nothing = dict.fromkeys(["weight", "train", "tool_calls", "reasoning_content", "name", "mask", "tool_call_id"])
    filled = dict.fromkeys(names) | record
    for name in {"messages", "conversations"} & own:
        both = {"role": None, "from": None, "content": None, "value": None}
        filled[name] = [both | nothing | turn for turn in record[name]]
    assert conversation_of(filled) == conversation_of(record)
    assert conversation_of(dict.fromkeys(names, "") | record) == conversation_of(record)


def test_an_input_may_stand_without_an_instruction():
    for nothing in (None, ""):
        record = {"instruction": nothing, "input": "i", "output": "a"}
        assert [message["content"] for message in messages_of(record)] == ["i", "a"]


@pytest.mark.parametrize("value", [0, 5, 1.5, False, True, [], ["x"], {}, {"a": 1}])
@pytest.mark.parametrize("name", ["instruction", "input", "output", "system"])
def test_a_text_that_is_no_string_is_refused_and_not_lost(name, value):
    record = {"instruction": "q", "input": "i", "output": "a", "system": "s"}
    with pytest.raises(ValueError, match=f'"{name}" is not a string but {type(value).__name__}'):
        messages_of(record | {name: value})
    for empty in (None, ""):
        messages = messages_of(record | {"instruction": "q", name: empty}) if name in ("input", "system") else []
        assert value not in [message["content"] for message in messages]


@pytest.mark.parametrize("value", [0, False, {}, "x", [["a"]]])
def test_a_history_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match='"history" is not a list of pairs'):
        messages_of({"instruction": "q", "output": "a", "history": value})


@pytest.mark.parametrize("field", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_mask": 0}, {"loss": False}])
def test_an_answer_may_be_left_out_of_the_training(field):
    (name, _), *_ = field.items()
    turns = [USER | {name: 0}, SAID | field, USER, SAID | {name: 1}]
    assert [m.get("train", True) for m in messages_of({"messages": turns})] == [True, False, True, True]
    with pytest.raises(ValueError, match=f'message 1: "{name}" asks to train on it, but only answers'):
        messages_of({"messages": [USER | {name: True}, *turns[1:]]})
    assert [m.get("train", True) for m in messages_of({"messages": [USER, SAID]} | field)] == [True, False]
    assert conversation_of({"messages": [USER, SAID], name: 1}) == conversation_of({"messages": [USER, SAID]})


def test_conversations_of_which_no_answer_is_trained_on_are_left_out_and_counted(settings, tmp_path):
    """They do not count as broken records, too many of which would stop the preparation."""
    records = [{"messages": [USER, SAID | {"weight": 0}]}] * 20 + [{"instruction": "q", "output": "a", "train": False}]
    records += [{"messages": [USER | {"content": f"q{i}"}, SAID]} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    said = []
    prepare(settings(f"chat:{tmp_path / 'a.jsonl'}", max_bad_lines=0, seq_len=256), tmp_path / "out", said.append)
    note = r": (\d+) conversations have no answer that is to be trained on, and are skipped\.$"
    assert sum(int(count) for line in said for count in re.findall(note, line)) == 21


@pytest.mark.parametrize("name", ["masked", "ignore", "ignore_loss"])
def test_so_it_may_by_fields_of_the_opposite_sense(name):
    turns = [USER | {name: True}, SAID | {name: 1}, USER, SAID | {name: False}]
    assert [m.get("train", True) for m in messages_of({"messages": turns})] == [True, False, True, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0.5}, 'message 2: "weight" is 0.5; it must be 0, 1, true or false'),
        ({"train": "false"}, "\"train\" is 'false'; it must be"),
        ({"loss_mask": [0, 1]}, r'"loss_mask" is \[0, 1\]; it must be'),
        ({"weight": float("nan")}, '"weight" is nan; it must be'),
        ({"weight": 0, "train": True}, "weight and train contradict each other"),
        ({"train_detail": [{"begin_offset": 0}]}, '"train_detail" is not read; .*use "train": false'),
        ({"mask": True}, '"mask" is not read'),
        ({"no_loss": 1}, '"no_loss" is not read'),
    ],
)
def test_a_weight_that_can_not_be_obeyed_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        messages_of({"messages": [USER, SAID | fields, USER, SAID]})


@pytest.mark.parametrize(
    ("count", "validation", "message"),
    [
        (1, 0.5, r"too few records: .*none of 1 falls into \w+\. Add records, or set it to 0"),
        (4, 1e-9, r"none of 4 falls into validation\. Raise that fraction, or add records\.$"),
        (4, 1 - 1e-9, r"none of 4 falls into train\. Lower that fraction, or add records\.$"),
    ],
)
def test_advice_about_too_few_records_is_what_helps(settings, tmp_path, count, validation, message):
    """Records are never split, so data.split = 'tail' would be wrong advice for them."""
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(FORMS["instruction"])] * count))
    for split in ("document", "tail"):
        config = settings(f"chat:{tmp_path / 'a.jsonl'}", validation=validation, split=split)
        with pytest.raises(DataError, match=message):
            prepare(config, tmp_path / "out", lambda line: None)


def test_a_mask_beside_the_messages_is_refused_by_name():
    with pytest.raises(ValueError, match='"completion_mask" is not read; to exclude an answer'):
        messages_of({"messages": [USER, SAID], "completion_mask": [0, 1]})


def test_calls_and_tools_keep_the_order_of_their_fields(settings, tmp_path):
    """A template writes the fields in their order, and another order gives other tokens; so the order must survive."""
    tools = [{"type": "function", "function": {"name": "f", "description": "d"}}]
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": ""}, SAID]
    found = conversation_of({"messages": turns, "tools": tools})
    assert json.dumps([found["tools"], found["messages"][1]["tool_calls"]]) == json.dumps([tools, [CALL]])
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "tool", "assistant"]
    template = "{% for m in messages %}{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    template += "{% if m.role == 'tool' %}{{ tools | tojson }}{% endif %}<|endoftext|>{% endfor %}"
    words = tokenizers.train([], "byte")
    words.special.tokenizer_config["chat_template"] = template
    words.published = True
    words.save(tmp_path / "tokenizer.json")
    lines = [json.dumps({"messages": [*turns, USER | {"content": f"q{i}"}, SAID], "tools": tools}) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    tokenizer = {"kind": "file", "path": str(tmp_path / "tokenizer.json")}
    config = settings(f"chat:{tmp_path / 'a.jsonl'}", tokenizer=tokenizer, seq_len=512)
    (source,) = prepare(config, tmp_path / "out", lambda line: None).sources
    rows = RowReader(source.train, 512, channels=source.channels).read(range(1))
    text = words.decode(rows[0, 0][rows[0, 2] == 1].astype(np.int32))
    assert json.dumps([CALL]) in text and json.dumps(tools) in text
    assert marked(rows, TRAINED).any()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": [USER, SAID], "images": ["a.png"]}, '"images" is not read: only text'),
        ({"messages": [USER, SAID], "output": "b"}, 'has both "messages" and "output"'),
        ({"messages": "[]"}, '"messages" is not a list of messages but str'),
        ({"messages": [USER | {"input": "z"}, SAID]}, 'message 1: "input" is read only beside "instruction"'),
    ],
)
def test_what_would_be_lost_is_refused(record, words):
    with pytest.raises(ValueError, match=words):
        messages_of(record)
