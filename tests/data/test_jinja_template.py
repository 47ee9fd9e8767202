"""Templates that tokenizers bring along, against transformers' ids and masks."""

import dataclasses

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from data import tokenizer as tokenizers
from data.chat import Chat
from data.templates import TEMPLATES
from launch.prompts import Inputs

# What Qwen3's writes without tools: the answer to the last question begins with an empty thought, those before don't.
# `«` and `»` stand around what is trained on.
QWEN3 = r"""{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}
{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}«{{- '<think>\n\n</think>\n\n' + m.content.lstrip('\n') + '<|im_end|>' }}»
{%- else %}«{{- m.content + '<|im_end|>' }}»{%- endif %}{{- '\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

TURNS = [("user", "What?"), ("assistant", "n <think"), ("user", "n"), ("assistant", "\nn")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]


@pytest.fixture(scope="module")
def backend(texts):
    backend = Tokenizer.from_str(tokenizers.train(texts, "bpe", 400, TEMPLATES["chatml"].markers).to_json())
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    return backend


def bringing(backend: Tokenizer, template: str) -> tokenizers.Tokenizer:
    words = tokenizers.Tokenizer(backend)
    return tokenizers.Tokenizer(
        backend, dataclasses.replace(words.special, tokenizer_config={"chat_template": template})
    )


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
    given = Inputs([chat.prompt(MESSAGES[:1])], None, chat.ends, answers=True, lead=chat.lead)
    assert given.continuation(words, ids[trained]) == "It is 4."
    assert given.continuation(words, words.encode("It is 4.")) == "It is 4."


def test_the_date_is_always_the_same(backend):
    words = bringing(backend, "{{ strftime_now('%d %b %Y') }}" + "{% for m in messages %}{{ m.content }}{% endfor %}")
    chat = Chat(words, {"template": "auto", "system": ""})
    assert words.decode(chat.encode(MESSAGES[:2])[0]).startswith("26 Jul 2024")
