"""Preferences are two conversations with one prompt, in one row, which are cut alike; bad records are named."""

import dataclasses
import json

import numpy as np
import pytest

from data.batch import DataError, from_rows
from data.examples import chat_examples, kinds
from data.examples.chat import Chat
from data.examples.example import CUT, Context, LeftOut
from data.prepare import prepare
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers
from data.tokens.special import EOT
from data.tokens.templates import TEMPLATES

RECORD = {"prompt": "What is a list?", "chosen": "A row of things.", "rejected": "No."}  # before it is parsed
# Stanford Alpaca's prompt without an input, which its README prints.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)
KIND = kinds.KINDS["preferences"]


@pytest.fixture(scope="module")
def words():
    return tokenizers.train(["a"], "byte", specials=["<|im_start|>", "<|im_end|>"])


def block(**changes):
    return kinds.checked({"preferences": changes})["preferences"]


def encoded(words, seq_len=1024, record=RECORD, prefix=(), **changes):
    context, settings = Context(words, seq_len, False, lambda: iter(()), prefix), block(**changes)
    return KIND.encoding(settings, context).encode(KIND.parse(record, settings))


def test_both_answers_follow_the_prompt(words):
    for example, name in zip(encoded(words), ("chosen", "rejected"), strict=True):
        begin = len(example.tokens) - example.trained.sum() + 1  # tokens before the answer
        assert example.trained.tolist() == [False] * (begin - 1) + [True] * (len(example.tokens) - begin + 1)
        assert words.decode(example.tokens[:begin]) == ALPACA.format(RECORD["prompt"])
        assert words.decode(example.targets[example.trained]) == RECORD[name]
        assert example.targets[-1] == words.eot_id and not example.notes
        assert np.array_equal(example.tokens[1:], example.targets[:-1])


@pytest.mark.parametrize("template", ["alpaca", "chatml"])
def test_each_is_what_the_model_learnt_as_a_conversation(template, words):
    chat = chat_examples.KIND.encoding(
        {"template": template, "system": "Be brief."}, Context(words, 1024, False, lambda: iter(()))
    )
    pair = encoded(words, template=template, system="Be brief.")
    for example, name in zip(pair, ("chosen", "rejected"), strict=True):
        turns = (("user", RECORD["prompt"]), ("assistant", RECORD[name]))
        wanted = chat.encode({"messages": [{"role": role, "content": text} for role, text in turns]})
        for field in ("tokens", "targets", "trained"):
            np.testing.assert_array_equal(getattr(example, field), getattr(wanted, field))


def test_a_model_is_asked_as_in_training(words):
    asking, (example, _) = KIND.asking, encoded(words)
    parsed = KIND.parse(RECORD, block())
    questions = [asking.question(parsed), asking.of_text(RECORD["prompt"], "")]
    prompts = asking.prompts(block(), words, questions, False)
    begin = len(example.tokens) - example.trained.sum() + 1
    assert prompts.prompts == [example.tokens[:begin].tolist()] * 2
    assert asking.reference(block(), words, parsed) == RECORD["chosen"]
    assert asking.shown(questions[0]) == RECORD["prompt"]
    assert prompts.answer(words, example.targets[example.trained]) == RECORD["chosen"]


@pytest.mark.parametrize("prefix", [(), (300, 301)])
@pytest.mark.parametrize("lengths", [(1, 4), (20, 20), (90, 3), (3, 200), (200, 150)], ids=str)
@pytest.mark.parametrize("prompt", [1, 40, 300])
@pytest.mark.parametrize("seq_len", [16, 61, 400])
def test_what_is_too_long_is_cut_alike(seq_len, prompt, lengths, prefix, words):
    record = {"prompt": "p" * prompt, "chosen": "c" * lengths[0], "rejected": "r" * lengths[1]}
    whole, pair = encoded(words, 4096, record), encoded(words, seq_len, record, prefix)
    room, size = seq_len - 2 * len(prefix), lambda found: sum(len(example.tokens) for example in found)
    if size(whole) <= room:
        assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(whole, pair, strict=True))
        assert not pair[0].notes
        return
    assert room - 1 <= size(pair) <= room and pair[0].notes == (CUT.format(seq_len),) and not pair[1].notes
    begins = [len(example.tokens) - example.trained.sum() + 1 for example in pair]
    assert begins[0] == begins[1] >= min(len(whole[0].tokens) - whole[0].trained.sum() + 1, max(room // 8, 1))
    assert pair[0].tokens[: begins[0]].tolist() == pair[1].tokens[: begins[0]].tolist()
    for example, before in zip(pair, whole, strict=True):  # the prompt's end and the answer's start stay
        said, everything = example.targets[example.trained], before.targets[before.trained]
        assert len(said) and said.tolist() == everything[: len(said)].tolist()
        prompt_ids = before.tokens[: len(before.tokens) - before.trained.sum() + 1]
        kept = example.tokens[: begins[0]]
        assert kept[1:].tolist() == prompt_ids[len(prompt_ids) - len(kept) + 1 :].tolist()
        assert kept[0] in (prompt_ids[0], prompt_ids[len(prompt_ids) - len(kept)])
    if begins[0] > max(room // 8, 1):  # answers are cut only if the prompt can't give more room
        assert [example.trained.sum() for example in pair] == [example.trained.sum() for example in whole]


def listed(*answers):
    return {"prompt": "a?", "answers": [{"text": text, "rank": rank} for text, rank in answers]}


def test_a_list_is_an_example_of_all_its_answers(words):
    """Of two equal answers the better one stays; answers of equal rank keep it."""
    segments = encoded(words, record=listed(("b", 2), ("a", 1), ("a", 4), ("c", 2), ("d", 3)))
    said = [words.decode(segment.targets[segment.trained]) for segment in segments]
    assert said == ["a", "b", "c", "d"] and [segment.rank for segment in segments] == [0, 1, 1, 2]


def test_a_prompt_that_its_answer_changes_is_refused(words):
    """This template leaves out the thoughts of a call once there is an answer, as that of gpt-oss does."""
    template = (
        "{% for m in messages %}{{ m['role'] }}: "
        "{% if m.get('reasoning_content') and messages[-1]['role'] != 'assistant' %}"
        "{{ m['reasoning_content'] }}{% endif %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    special = dataclasses.replace(words.special, tokenizer_config={"chat_template": template, "eos_token": EOT})
    own = tokenizers.Tokenizer(words._backend, special)
    call = {"role": "assistant", "content": "look", "reasoning_content": "I must look it up."}
    asked = [{"role": "user", "content": "a?"}, call, {"role": "user", "content": "go on"}]
    with pytest.raises(ValueError, match=r"the prompt .* differently .* set config\.data\.preferences\.template"):
        encoded(own, record={"prompt": asked, "chosen": "It is 42", "rejected": "no"}, template="tokenizer")
    whole = encoded(own, record={"prompt": "a?", "chosen": "It is 42", "rejected": "no"}, template="tokenizer")
    assert [own.decode(segment.targets[segment.trained]) for segment in whole] == ["It is 42", "no"]


@pytest.mark.parametrize("seq_len", [90, 200])
def test_a_list_that_is_too_long_is_cut_alike(seq_len, words):
    answers = [("a" * 30, 1), ("b", 2), ("c" * 60, 3), ("d" * 5, 4)]
    segments = encoded(words, seq_len, listed(*answers))
    assert seq_len - 3 <= sum(len(segment.tokens) for segment in segments) <= seq_len
    begins = {len(segment.tokens) - segment.trained.sum() + 1 for segment in segments}
    sizes = [int(segment.trained.sum()) for segment in segments]
    assert len(begins) == 1 and min(sizes) > 0
    whole = [len(text) + 1 for text, _ in answers]  # with the end token
    assert all(size == min(full, max(sizes)) for size, full in zip(sizes, whole, strict=True))


def test_a_list_without_room_is_left_out(words):
    with pytest.raises(LeftOut, match="too many answers for a row"):
        encoded(words, 8, listed(*((str(i), i) for i in range(9))))
    with pytest.raises(LeftOut, match="too many answers for a row"):  # the prompts alone would fill it
        encoded(words, 512, listed(*((f"answer {i}", i) for i in range(50))))


@pytest.mark.parametrize("record", [RECORD | {"rejected": RECORD["chosen"]}, listed(("a", 1), ("b", 1))])
def test_answers_that_are_not_better_teach_nothing(record, words):
    with pytest.raises(LeftOut, match="no two different answers of different rank"):
        encoded(words, record=record)


def test_answers_that_are_equal_as_tokens_teach_nothing(words):
    """Some templates strip an answer, and a row cuts it."""
    with pytest.raises(LeftOut, match="no two different answers of different rank"):
        encoded(words, 64, RECORD | {"chosen": "x" * 200 + "a", "rejected": "x" * 200 + "b"})
    tokenizer = tokenizers.train(["a"], "byte", specials=list(TEMPLATES["gemma"].markers))
    with pytest.raises(LeftOut, match="no two different answers of different rank"):
        encoded(tokenizer, record=RECORD | {"chosen": "No. "}, template="gemma")


def test_errors_of_the_template_name_this_kind(words):
    tools = [{"type": "function", "function": {"name": "add"}}]
    with pytest.raises(ValueError, match=r"config\.data\.preferences\.template"):
        encoded(words, record=RECORD | {"tools": tools})


@pytest.mark.parametrize("template", ["alpaca", "chatml"])
def test_a_ranking_is_scored_at_the_last_token_of_its_text(template, words):
    settings = kinds.checked({"rankings": {"template": template}})["rankings"]
    kind = kinds.KINDS["rankings"]
    record = kind.parse(RECORD, settings)
    found = kind.encoding(settings, Context(words, 1024, False, lambda: iter(()))).encode(record)
    for segment, answer in zip(found, record["answers"], strict=True):
        whole = Chat(words, settings).encode([*record["messages"], answer])[0]
        assert segment.tokens.tolist() == whole.tolist()
        assert np.flatnonzero(segment.trained).tolist() == [len(whole) - 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": [{"role": "user", "content": "a"}]}, "'chosen' does not end with an answer of the assistant"),
        ({"rejected": " "}, "field 'rejected' is empty"),
        ({"prompt": None}, "field 'prompt' is null"),
    ],
)
def test_bad_records_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        KIND.parse(RECORD | change, block())
    with pytest.raises(ValueError, match=r"set config\.data\.preferences\.prompt to one of them"):
        KIND.parse(RECORD, block(prompt="question"))


def test_bad_settings_are_named(words, settings, tmp_path):
    with pytest.raises(DataError, match=r"data\.preferences\.chosen must be a string, not 3"):
        kinds.checked({"preferences": {"chosen": 3}})
    with pytest.raises(DataError, match=r"data\.preferences\.template must be one of auto, "):
        kinds.checked({"preferences": {"template": "none"}})
    with pytest.raises(DataError, match=r"data\.preferences\.template is 'llama3', but the tokenizer has no token"):
        encoded(words, template="llama3")
    config = settings(f"preferences:{tmp_path}/a.jsonl", preferences={"template": "chatml"})
    with pytest.raises(DataError, match=r"set data\.tokenizer\.chat to 'chatml', or data\.preferences\.template"):
        prepare(config, tmp_path / "out", lambda line: None)
    with pytest.raises(DataError, match="preferences:GLOB are for decoders"):
        prepare(settings(f"preferences:{tmp_path}/a.jsonl"), tmp_path / "out", lambda line: None, encoder=True)


def test_margins_stand_at_every_token(words):
    kind = kinds.KINDS["rankings"]
    settings = kinds.checked({"rankings": {"margin": "by"}})["rankings"]
    encode = kind.encoding(settings, Context(words, 1024, False, lambda: iter(()))).encode
    answers = [{"text": text, "score": score} for text, score in (("b", 1), ("b", 2), ("c", -1))]
    for record, wanted in ((RECORD | {"by": 1.5}, [1.5, 0.0]), ({"prompt": "a?", "answers": answers}, [2, -1])):
        found = encode(kind.parse(record, settings))
        assert [set(segment.own["scores"].tolist()) for segment in found] == [{score} for score in wanted]
        assert all(len(segment.own["scores"]) == len(segment.tokens) for segment in found)
    names = [channel.name for channel in kind.channels(settings)]
    assert names == [*[channel.name for channel in kind.channels(settings | {"margin": ""})], "scores"]


def test_from_a_file_to_rows(settings, tmp_path):
    records = [{"q": f"{i}?", "good": f"yes {i}", "bad": "no" * (1 + i % 3)} for i in range(40)]
    records[7]["bad"] = records[7]["good"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    names = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    config = settings(
        f"preferences:{tmp_path}/a.jsonl", seq_len=640, tokenizer={"kind": "byte"}, preferences=names, validation=0.2
    )
    said = []
    prepared = prepare(config, tmp_path / "out", said.append)
    words, (source,) = tokenizers.load(prepared.tokenizer_path), prepared.sources
    assert any(
        "1 preferences have no two different answers of different rank, and are skipped" in line for line in said
    ), said
    found = {}
    for split in ("train", "validation"):
        reader = RowReader(getattr(source, split), 640, channels=source.channels)
        batch = from_rows(reader.read(range(len(reader))), source.channels)
        for row in range(len(reader)):
            groups, ranks, trained = (batch[name][row] for name in ("group_ids", "ranks", "weights"))
            for group in range(1, groups.max() + 1):
                at = [(groups == group) & (ranks == rank) for rank in (0, 1)]
                good, bad = (words.decode(batch["targets"][row][a & (trained > 0)][:-1]) for a in at)
                found[good] = bad
    assert found == {record["good"]: record["bad"] for i, record in enumerate(records) if i != 7}
