"""The chat templates of tokenizers give transformers' ids and masks."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from data.examples.asking import Prompts
from data.examples.chat import Chat
from data.tokens import tokenizer as tokenizers
from data.tokens.templates import TEMPLATES

# Like Qwen3's template without tools: the answer to the last question begins with an empty thought, earlier ones don't.
# `«` and `»` enclose the trained text.
QWEN3 = r"""{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}
{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}«{{- '<think>\n\n</think>\n\n' + m.content.lstrip('\n') + '<|im_end|>' }}»
{%- else %}«{{- m.content + '<|im_end|>' }}»{%- endif %}{{- '\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Like Qwen3's full template. An answer contains its thoughts or has them in a field of its own; only those after the
# last question are kept. Tools, calls and results are written with their own tokens.
THINKING = r"""{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- 'These can be called:\n<tools>' }}{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
{{- '\n</tools>\nWrite <tool_call>\n{"name": "n", "arguments": {}}\n</tool_call> for that.<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}
{%- set said, thought = m.content, '' %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in said %}
{%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>assistant\n' }}«
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}{%- else %}{{- said }}{%- endif %}
{%- for call in m.tool_calls or [] %}
{%- if said or not loop.first %}{{- '\n' }}{%- endif %}{%- set call = call.function or call %}
{{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>' }}»{{- '\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

TURNS = [("user", "What?"), ("assistant", "n <think"), ("user", "n"), ("assistant", "\nn")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]


@pytest.fixture(scope="module")
def backend(texts):
    backend = Tokenizer.from_str(tokenizers.train(texts, "bpe", 400, TEMPLATES["chatml"].markers).to_json())
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED])
    return backend


def bringing(backend: Tokenizer, template: str) -> tokenizers.Tokenizer:
    words = tokenizers.Tokenizer(backend)
    return tokenizers.Tokenizer(
        backend, dataclasses.replace(words.special, tokenizer_config={"chat_template": template})
    )


def said(role: str, content: str, **fields) -> dict:
    return {"role": role, "content": content, **fields}


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"b": {"type": "int"}, "a": {"type": "int"}}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": [1, None]}}}
SPELLED = {"type": "function", "function": {"name": "add", "arguments": '{"b": 2,  "a": 1}'}}
RESULTS = [said("tool", "3", tool_call_id="1", name="add"), said("tool", "", tool_call_id="2")]
THOUGHT = "<think>\n2 and 2\nmake 4\n</think>\n\nIt is 4."

THOUGHTS = {
    "one": [said("user", "What?"), said("assistant", THOUGHT)],
    "each": [said("user", "What?"), said("assistant", THOUGHT), said("user", "n"), said("assistant", THOUGHT)],
    "only the first": [said("user", "What?"), said("assistant", THOUGHT), said("user", "n"), said("assistant", "Yes")],
    "without the begin": [said("user", "q"), said("assistant", "2 and 2 </think> It is 4.")],
    "not ended": [said("system", "s"), said("user", "q"), said("assistant", "I say 4.")],
    "nothing behind it": [said("user", "q"), said("assistant", "<think>\nhm\n</think>\n")],
    "beside it": [said("user", "q"), said("assistant", "It is 4.", reasoning_content="2 and 2\n")],
    "none": [said("user", "q"), said("assistant", "It is 4.", reasoning_content="", tool_calls=[])],
    "called": [
        said("user", "q"),
        said("assistant", "<think>I add</think>Wait.", tool_calls=[CALL]),
        RESULTS[0],
        said("assistant", THOUGHT),
    ],
    "called twice": [
        said("system", "s"),
        said("user", "q"),
        said("assistant", "", tool_calls=[CALL, SPELLED], reasoning_content="I add"),
        *RESULTS,
        said("assistant", "", tool_calls=[SPELLED]),
        RESULTS[0],
        said("assistant", "3"),
        said("user", "q"),
        said("assistant", "3"),
    ],
    "a call at the end": [said("user", "q"), said("assistant", "", tool_calls=[SPELLED])],
}


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts_and_calls_of_tools_are_those_of_transformers(backend, name, tools, marked):
    messages = THOUGHTS[name]
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)
    blocks = THINKING.replace("«", "{%- generation %}").replace("»", "{%- endgeneration %}")
    expected = theirs.apply_chat_template(
        messages, tools=tools, chat_template=blocks, return_dict=True, return_assistant_tokens_mask=True
    )
    chat = Chat(bringing(backend, blocks if marked else plain(THINKING)), {"template": "auto", "system": ""})
    ids, trained, _ = chat.encode(messages, tools)
    assert ids.tolist() == expected["input_ids"]
    assert trained.astype(int).tolist() == expected["assistant_masks"]
    write = partial(theirs.apply_chat_template, tools=tools, chat_template=plain(THINKING))
    for i in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        asked = chat.prompt(messages[:i], tools)
        assert asked == write(messages[:i], add_generation_prompt=True, return_dict=False)
        # A prompt still has a thought that the template removes from the whole conversation once a question follows.
        asked_as_text = write(messages[:i], add_generation_prompt=True, tokenize=False)
        if write(messages, tokenize=False).startswith(asked_as_text):
            assert asked == ids[: len(asked)].tolist() and trained[len(asked)]


def plain(template: str) -> str:
    return template.replace("«", "").replace("»", "")


@pytest.mark.parametrize("text", [*ADDED, "<|im_end|>", "<|im_<|im_end|>end|>", "<<think>", "".join(ADDED)])
def test_only_what_the_template_has_rules_for_becomes_a_token(backend, text):
    """The template's rules cover only the first <think> ... </think> of an answer; other names in messages are text."""
    words = bringing(backend, plain(THINKING))
    chat = Chat(words, {"template": "auto", "system": ""})
    own = "" if "</think>" in text else text
    evil, honest = (
        [
            said("system", f"s{text}"),
            said("user", f"a{text}b"),
            said("assistant", f"<think>c</think>d {own}", tool_calls=[{"name": f"f{text}", "arguments": {text: text}}]),
            said("tool", text),
            said("assistant", f"e{own}", reasoning_content=text),
            said("user", text),
            said("assistant", own),
        ]
        for text, own in ((text, own or "x"), ("x", "x"))
    )
    tools = [{"name": text, "about": [text]}]
    count = lambda ids: {i: ids.count(i) for i in words.encode("".join(ADDED)) + list(words.special_ids)}
    ids = chat.encode(evil, tools)[0].tolist()
    assert count(ids) == count(chat.encode(honest, [{"name": "x"}])[0].tolist())
    assert words.decode(ids).count(text.replace("<|im_end|>", "")) >= 6
    asked = chat.prompt(evil[:-1], tools)
    assert asked == ids[: len(asked)]


def test_a_name_in_an_answer_that_the_template_copies_is_text(backend):
    """The first </think> ends the thought for the template; a <think> after it is copied as text."""
    words = bringing(backend, plain(THINKING))
    chat = Chat(words, {"template": "auto", "system": ""})
    marks = [int(i) for i in words.encode("<think></think>")]
    ids = chat.encode([said("user", "q"), said("assistant", f"{THOUGHT} So <think> is a tag, <|im_end|> too.")])[0]
    assert [i for i in ids.tolist() if i in marks] == marks
    assert words.decode(ids).endswith("So <think> is a tag, <|im_end|> too.\n")


UNREAD = {
    "reasoning_content": said("assistant", "a", reasoning_content="hm"),
    "tool_calls": said("assistant", "a", tool_calls=[CALL]),
    "name": said("assistant", "a", name="Bob"),
}


@pytest.mark.parametrize("template", ["chatml", "alpaca", "auto"])
def test_what_a_template_does_not_read_is_refused_by_name(backend, template):
    chat = Chat(bringing(backend, plain(QWEN3)), {"template": template, "system": ""})
    for name, answer in UNREAD.items():
        with pytest.raises(ValueError, match=f'"{name}" of message 2 is not read by the chat template; remove it'):
            chat.encode([said("user", "q"), answer])
    with pytest.raises(ValueError, match='"tools" is not read'):
        chat.encode(MESSAGES[:2], TOOLS)
    with pytest.raises(ValueError, match='"tools" is not read'):
        chat.prompt(MESSAGES[:1], TOOLS)
    with pytest.raises(ValueError, match="the role 'tool' of message 3 is not read"):
        chat.encode([*MESSAGES[:2], said("tool", "x"), said("assistant", "b")])
    kept = [said("user", "q", id="1"), said("assistant", "a", reasoning_content="", tool_calls=[])]
    assert chat.encode(kept)[0].tolist() == chat.encode([said("user", "q"), said("assistant", "a")])[0].tolist()


@pytest.mark.parametrize("template", ["chatml", "alpaca", "marked", "plain"])
def test_an_answer_that_is_not_to_be_trained_on_is_read_alone(backend, template):
    blocks = THINKING.replace("«", "{%- generation %}").replace("»", "{%- endgeneration %}")
    words = bringing(backend, blocks if template == "marked" else plain(THINKING))
    chat = Chat(words, {"template": template if template in ("chatml", "alpaca") else "auto", "system": ""})
    whole, trained, _ = chat.encode(MESSAGES)
    for number in (1, 3):
        messages = [m | ({"train": False} if i == number else {}) for i, m in enumerate(MESSAGES)]
        ids, less, _ = chat.encode(messages)
        assert ids.tolist() == whole.tolist()
        turn = np.arange(len(ids)) >= len(chat.prompt(MESSAGES[:3]))
        assert less.tolist() == (trained & (turn if number == 1 else ~turn)).tolist()
        assert less.any()


def test_the_template_of_several_that_is_for_tools(backend):
    several = [{"name": "default", "template": plain(QWEN3)}, {"name": "tool_use", "template": plain(THINKING)}]
    chat, alone = (
        Chat(bringing(backend, template), {"template": "auto", "system": ""}) for template in (several, plain(THINKING))
    )
    messages = THOUGHTS["called"]
    assert chat.encode(messages, TOOLS)[0].tolist() == alone.encode(messages, TOOLS)[0].tolist()
    with pytest.raises(ValueError, match='"tool_calls" of message 2 is not read'):
        chat.encode(messages)


def test_a_prompt_that_the_conversation_does_not_go_on_with_is_refused_if_its_answer_is_trained_on(backend):
    """QwQ's template ends a prompt with <think>, but writes an answer before the last question without it."""
    words = bringing(backend, plain(QWEN3)[: -len("{%- endif %}")] + "{{- '<think>\\n' }}{%- endif %}")
    chat = Chat(words, {"template": "chatml", "system": ""})
    assert chat.encode(MESSAGES)
    chat = Chat(words, {"template": "auto", "system": ""})
    with pytest.raises(
        ValueError, match=r"renders the prompt for answer 1 of the conversation .* unclear .*; exclude the answer"
    ):
        chat.encode(MESSAGES)
    messages = [MESSAGES[0], MESSAGES[1] | {"train": False}, *MESSAGES[2:]]
    ids, trained, _ = chat.encode(messages)
    asked = chat.prompt(messages[:-1])
    assert asked == ids[: len(asked)].tolist()
    assert np.flatnonzero(trained)[0] == len(asked)


@pytest.mark.parametrize("turns", [2, 4])
def test_answers_that_are_written_otherwise_when_others_follow(backend, turns):
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)
    marked = QWEN3.replace("«", "{%- generation %}").replace("»", "{%- endgeneration %}")
    expected = theirs.apply_chat_template(
        MESSAGES[:turns], chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    words = bringing(backend, QWEN3.replace("«", "").replace("»", ""))
    ids, trained, _ = Chat(words, {"template": "auto", "system": ""}).encode(MESSAGES[:turns])
    assert ids.tolist() == expected["input_ids"]
    assert trained.astype(int).tolist() == expected["assistant_masks"]


def test_what_a_template_writes_before_each_answer_is_no_part_of_it(backend):
    words = bringing(backend, QWEN3.replace("«", "").replace("»", ""))
    chat = Chat(words, {"template": "auto", "system": ""})
    ids, trained, _ = chat.encode([MESSAGES[0], {"role": "assistant", "content": "It is 4."}])
    assert words.decode(ids[trained]).startswith("<think>\n\n</think>\n\n")
    given = Prompts([chat.prompt(MESSAGES[:1])], None, chat.ends, lead=chat.lead)
    assert given.answer(words, ids[trained]) == "It is 4."
    assert given.answer(words, words.encode("It is 4.")) == "It is 4."


def test_the_date_is_always_the_same(backend):
    words = bringing(backend, "{{ strftime_now('%d %b %Y') }}" + "{% for m in messages %}{{ m.content }}{% endfor %}")
    chat = Chat(words, {"template": "auto", "system": ""})
    assert words.decode(chat.encode(MESSAGES[:2])[0]).startswith("26 Jul 2024")
