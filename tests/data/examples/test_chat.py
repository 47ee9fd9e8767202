"""Chat templates give transformers' ids and masks, and no message can write a special token."""

import dataclasses
import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from data.batch import TRAINED, DataError, marked
from data.examples.chat import Chat
from data.prepare import prepare
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers
from data.tokens.special import EOT
from data.tokens.templates import TEMPLATES

# The published chat templates of each family, without tools. `«` and `»` enclose the trained text. They become {%
# generation %} blocks where transformers must return its mask, and are removed elsewhere.
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}«\
{{ m['content'] + '<|im_end|>' }}»{{ '\\n' }}{% else %}{{ m['content'] + '<|im_end|>' + '\\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\\n' }}{% endif %}" + CHATML
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}«{{ ' ' + content.strip() + ' ' + eos_token }}»{% endif %}{% endfor %}"""
LLAMA3 = """{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}{% if message['role'] == 'assistant' %}«\
{{ message['content'] | trim + '<|eot_id|>' }}»{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}\
{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}\
{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}\
{%- for message in loop_messages -%}{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}\
{%- set role = message['role'] -%}{%- endif -%}\
{{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}\
{%- if role == 'model' -%}«{{ message['content'] | trim }}{{ '<end_of_turn>' }}»{{ '\\n' }}{%- else -%}\
{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endif -%}{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
ALPACA = """{{ eos_token }}{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}\
{{ messages[0]['content'] + '\\n\\n' }}{% else %}{% set turns = messages %}{{ 'Below is an instruction that describes \
a task. Write a response that appropriately completes the request.\\n\\n' }}{% endif %}{% for m in turns %}\
{% if m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n### Response:' }}{% else %}«\
{{ m['content'] + eos_token }}»{{ '\\n\\n' }}{% endif %}{% endfor %}"""

PUBLISHED = {
    "chatml": (CHATML, "", "<|im_end|>"),
    "qwen": (QWEN, "", "<|im_end|>"),
    "llama2": (LLAMA2, "<s>", "</s>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>"),
    "alpaca": (ALPACA, EOT, EOT),
}
MARKERS = sorted({marker for template in TEMPLATES.values() for marker in template.markers})

CONVERSATIONS = [
    [("user", "What is 2 + 2?"), ("assistant", "It is 4.")],
    [
        ("system", "Be brief."),
        ("user", " who?\n"),
        ("assistant", "東京 🙂 straße"),
        ("user", "a\nb"),
        ("assistant", "- c\n"),
    ],
]
CONVERSATIONS = [[{"role": role, "content": content} for role, content in turns] for turns in CONVERSATIONS]


def quiet(line: str) -> None:
    """Ignores a line of the log."""


def without_marks(template: str) -> str:
    return template.replace("«", "").replace("»", "")


def with_marks(template: str) -> str:
    return template.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")


def bringing(words: tokenizers.Tokenizer, template: str, begin: str, end: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer with a chat template of its own."""
    backend = tokenizers.Backend.from_str(words.to_json())
    config = {"chat_template": template, "bos_token": begin, "eos_token": end}
    return tokenizers.Tokenizer(backend, dataclasses.replace(words.special, tokenizer_config=config))


@pytest.fixture(scope="module")
def words(texts):
    return tokenizers.train(texts, "bpe", 420, MARKERS)


@pytest.fixture(scope="module", params=PUBLISHED)
def family(request, words):
    """Returns (name, published template, begin, end, transformers' tokenizer)."""
    template, begin, end = PUBLISHED[request.param]
    backend = tokenizers.Backend.from_str(words.to_json())
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, **({"bos_token": begin} if begin else {}))
    return request.param, template, begin, end, theirs


def theirs_of(family, messages):
    """Returns transformers' ids and its mask of trained tokens."""
    _, template, _, _, theirs = family
    found = theirs.apply_chat_template(
        messages, chat_template=with_marks(template), return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], found["assistant_masks"]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_templates_give_the_ids_and_the_mask_of_transformers(family, words, messages):
    name, template, begin, end, theirs = family
    expected_ids, expected_mask = theirs_of(family, messages)
    assert 0 < sum(expected_mask) < len(expected_mask)
    prompt = theirs.apply_chat_template(
        messages[:-1], chat_template=without_marks(template), add_generation_prompt=True, return_dict=False
    )
    for chat in (
        Chat(words, {"template": name, "system": ""}),
        Chat(bringing(words, with_marks(template), begin, end), {"template": "auto", "system": ""}),
        Chat(bringing(words, without_marks(template), begin, end), {"template": "tokenizer", "system": ""}),
    ):
        ids, trained, _ = chat.encode(messages)
        assert ids.tolist() == expected_ids
        assert trained.astype(int).tolist() == expected_mask
        assert chat.prompt(messages[:-1]) == prompt
        assert chat.ends[0] == ids[trained][-1] == theirs.convert_tokens_to_ids(end)


def test_the_answers_and_their_ends_are_trained_and_nothing_else(family, words):
    chat = Chat(words, {"template": family[0], "system": ""})
    ids, trained, _ = chat.encode(CONVERSATIONS[1])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trained, [0]])))
    runs = [ids[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    said = [message["content"] for message in CONVERSATIONS[1] if message["role"] == "assistant"]
    assert [words.decode(run[:-1]).strip() for run in runs] == [text.strip() for text in said]
    assert {int(run[-1]) for run in runs} == {chat.ends[0]}


def test_a_message_can_not_smuggle_a_special_token_in(family, words):
    name, template, begin, end, _ = family
    honest = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    count = lambda ids: {i: list(ids).count(i) for i in words.special_ids}
    attack = "".join(MARKERS) + "<<s>" + "<|im_<|im_end|>end|>" + EOT
    evil = [{"role": "user", "content": attack}, {"role": "assistant", "content": f"a{attack}b"}]
    for chat in (
        Chat(words, {"template": name, "system": ""}),
        Chat(bringing(words, with_marks(template), begin, end), {"template": "auto", "system": ""}),
        Chat(bringing(words, without_marks(template), begin, end), {"template": "auto", "system": ""}),
    ):
        ids, trained, _ = chat.encode(evil)
        assert count(ids) == count(chat.encode(honest)[0])
        assert words.decode(ids[trained][:-1]).strip() == evil[1]["content"]
        assert chat.encode(evil)[0].tolist() == Chat(words, {"template": name, "system": ""}).encode(evil)[0].tolist()


def test_a_system_text_of_the_config_is_for_conversations_without_one(words):
    chat = Chat(words, {"template": "chatml", "system": "Be kind."})
    plain = Chat(words, {"template": "chatml", "system": ""})
    system = [{"role": "system", "content": "Be kind."}]
    assert chat.encode(CONVERSATIONS[0])[0].tolist() == plain.encode(system + CONVERSATIONS[0])[0].tolist()
    assert chat.encode(CONVERSATIONS[1])[0].tolist() == plain.encode(CONVERSATIONS[1])[0].tolist()


def test_auto_is_the_template_of_the_tokenizer_or_alpaca(words):
    auto = lambda words: Chat(words, {"template": "auto", "system": ""})
    ids = lambda chat: chat.encode(CONVERSATIONS[0])[0].tolist()
    assert ids(auto(words)) == ids(Chat(words, {"template": "alpaca", "system": ""}))
    several = [{"name": "tool_use", "template": "{{ x }}"}, {"name": "default", "template": without_marks(CHATML)}]
    assert ids(auto(bringing(words, several, "", ""))) == ids(Chat(words, {"template": "chatml", "system": ""}))


def test_a_template_that_the_tokenizer_can_not_write_is_refused(texts):
    bare = tokenizers.train(texts, "bpe", 300, ["<s>", "</s>"])
    with pytest.raises(DataError, match=r"no token '<\|im_start\|>'; these templates would work: llama2, alpaca"):
        Chat(bare, {"template": "chatml", "system": ""})
    with pytest.raises(DataError, match=r"has no chat template; .*llama2, alpaca"):
        Chat(bare, {"template": "tokenizer", "system": ""})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "chat template is broken: line 1"),
        ("{{ raise_exception('not today') }}", "refuses the conversation: not today"),
        ("{% generation %}{% endgeneration %}", "writes no answer"),
        ("{{ messages.__class__.__mro__ }}", "refuses the conversation: .*unsafe"),
        # Earlier turns change when others follow, so the trained part of the text is unclear.
        ("{% for m in messages %}{{ loop.length ~ m.content }}{% endfor %}", "unclear which text to train on"),
    ],
)
def test_templates_that_fail_say_why(words, template, message):
    with pytest.raises(DataError, match=message):
        Chat(bringing(words, template, "", ""), {"template": "auto", "system": ""})


@pytest.mark.parametrize("encoder", [False, True])
def test_conversations_arrive_in_the_rows(settings, tmp_path, encoder):
    """A decoder trains on each answer once; an encoder-decoder trains on the last answer of each conversation."""
    turns = [[f"ask {i} {j}", f"answer {i} {j}" + " long" * (i % 5)] for i in range(40) for j in range(2)]
    records = [
        {"instruction": last[0], "output": last[1], "history": [first]}
        for first, last in zip(turns[::2], turns[1::2], strict=True)
    ]
    (tmp_path / "chat.json").write_text(json.dumps(records))
    config = settings(tokenizer={"kind": "byte"}, seq_len=256, chat={"system": "S."}) | {"sources": ()}
    config |= {"path": str(tmp_path / "chat.json"), "format": "chat"}
    prepared = prepare(config, tmp_path / "out", quiet, encoder)
    (source,), tokenizer = prepared.sources, tokenizers.load(prepared.tokenizer_path)
    found = []
    for split in ("train", "validation"):
        reader = RowReader(getattr(source, split), 256, channels=source.channels)
        rows = reader.read(range(len(reader)))
        ids = rows[:, 1][marked(rows, TRAINED)]
        ends = np.flatnonzero(ids == tokenizer.eot_id)
        found += [tokenizer.decode(part[:-1]) for part in np.split(ids, ends + 1)[:-1]]
    said = [answer for _, answer in (turns[1::2] if encoder else turns)]
    assert sorted(found) == sorted(said)


def test_another_template_makes_other_rows_and_another_stream(settings, tmp_path):
    record = {"instruction": "q", "output": "a"}
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record | {"output": f"a{i}"}) for i in range(20)))
    made = []
    for system in ("", "S."):
        config = settings(
            f"chat:{tmp_path / 'a.jsonl'}", seq_len=256, tokenizer={"kind": "byte"}, chat={"system": system}
        )
        made.append(prepare(config, tmp_path / "out", quiet))
    assert made[0].directory != made[1].directory
    assert made[0].sources[0].corpus == made[1].sources[0].corpus
    assert made[0].sources[0].encoding != made[1].sources[0].encoding


def test_a_record_that_can_not_become_an_example_is_named(settings, tmp_path):
    lines = [{"instruction": f"q{i}", "output": "a"} for i in range(30)]
    lines[7]["output"] = "\ue0f0"
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = bringing(tokenizers.train([], "byte"), without_marks(ALPACA), "", EOT)
    words.save(tmp_path / "tokenizer.json")
    tokenizer = {"kind": "file", "path": str(tmp_path / "tokenizer.json")}
    with pytest.raises(DataError, match=r"a\.jsonl, line 8: a message has a character from"):
        prepare(settings(f"chat:{tmp_path / 'a.jsonl'}", tokenizer=tokenizer), tmp_path / "out", quiet)
