"""Every published form of a comparison gives the same conversation and answers; broken ones are named."""

import pytest

from data.examples import kinds
from data.examples.judged.comparisons import comparison_of

SETTINGS = kinds.checked({})["preferences"]
QUESTION = [{"role": "user", "content": "Two plus two?"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("4", "22"))
HUMAN = "\n\nHuman: Two plus two?\n\nAssistant:"
WANTED = {
    "messages": [{"content": "Two plus two?", "role": "user"}],
    "answers": [{"content": "4", "role": "assistant"}, {"content": "22", "role": "assistant"}],
    "ranks": [0, 1],
}
FORMS = {
    "texts": {"prompt": "Two plus two?", "chosen": "4", "rejected": "22"},
    "a null prompt": {"prompt": None, "chosen": [*QUESTION, GOOD], "rejected": [*QUESTION, BAD]},
    "prompt of messages": {"prompt": QUESTION, "chosen": [GOOD], "rejected": [BAD]},
    "texts after messages": {"prompt": QUESTION, "chosen": "4", "rejected": "22"},
    "whole conversations": {"prompt": "Two plus two?", "chosen": [*QUESTION, GOOD], "rejected": [*QUESTION, BAD]},
    "hh-rlhf": {"chosen": HUMAN + " 4", "rejected": HUMAN + " 22"},
    "hh-rlhf with a prompt": {"prompt": HUMAN, "chosen": " 4", "rejected": " 22"},
    "transcripts in all fields": {"prompt": HUMAN, "chosen": HUMAN + " 4", "rejected": HUMAN + " 22"},
    "a message each": {"prompt": QUESTION, "chosen": GOOD, "rejected": {"from": "gpt", "value": "22"}},
    "one message as prompt": {"prompt": QUESTION[0], "chosen": "4", "rejected": "22"},
    "an empty list": {"prompt": "Two plus two?", "answers": [], "chosen": "4", "rejected": "22"},
    "with other forms beside it": {
        "prompt": "Two plus two?",
        "messages": [*QUESTION, GOOD],
        "chosen": [*QUESTION, GOOD],
        "rejected": [*QUESTION, BAD],
        "score_chosen": 8.0,
    },
    "empty fields of a table": {"prompt": "", "answers": "", "chosen": HUMAN + " 4", "rejected": HUMAN + " 22"},
    "Nectar's prompt": {
        "prompt": HUMAN + " ",
        "answers": [{"answer": "22", "rank": 2.0}, {"answer": "4", "rank": 1.0}],
    },
    "ShareGPT": {
        "chosen": [{"from": "human", "value": "Two plus two?"}, {"from": "gpt", "value": "4"}],
        "rejected": [{"from": "human", "value": "Two plus two?"}, {"from": "gpt", "value": "22"}],
    },
    "Nectar": {
        "prompt": "Two plus two?",
        "answers": [{"answer": "22", "model": "a", "rank": 7.0}, {"answer": "4", "model": "b", "rank": 1.0}],
    },
    "scores": {
        "prompt": "Two plus two?",
        "answers": [{"response": "22", "overall_score": 2.5}, {"response": "4", "overall_score": 9.0}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form):
    assert comparison_of(FORMS[form], SETTINGS) == WANTED


PAIR = {"chosen": "4", "rejected": "22"}


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"prompt": "Hi", "system": "Be brief."}, [("system", "Be brief."), ("user", "Hi")]),
        ({"prompt": QUESTION, "system": "Be brief."}, [("system", "Be brief."), ("user", "Two plus two?")]),
        ({"prompt": "Add.", "input": "2 2"}, [("user", "Add.\n\n2 2")]),
        ({"prompt": "c", "history": [["a", "b"]]}, [("user", "a"), ("assistant", "b"), ("user", "c")]),
        (
            {"prompt": [{"role": "system", "content": "S"}], "chosen": [*QUESTION, GOOD], "rejected": [*QUESTION, BAD]},
            [("system", "S"), ("user", "Two plus two?")],
        ),
        (
            {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"},
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
    ],
)
def test_all_of_the_prompt_is_read(record, wanted):
    found = comparison_of(PAIR | record, SETTINGS)
    assert [(message["role"], message["content"]) for message in found["messages"]] == wanted
    assert found["answers"] == WANTED["answers"]


def test_an_answer_may_be_a_tool_call():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    found = comparison_of({"prompt": "2 + 2", "chosen": call, "rejected": "No."}, SETTINGS)
    assert found["answers"][0]["tool_calls"] and found["answers"][0]["content"] == ""


def test_other_field_names():
    record = {"instruction": "Two plus two?", "completions": FORMS["scores"]["answers"]}
    assert comparison_of(record, SETTINGS | {"prompt": "instruction", "answers": "completions"}) == WANTED


def test_a_dialogue_of_several_turns():
    said = "\n\nHuman: Hi\n\nAssistant: Hello\nthere\n\nHuman: Two plus two?\n\nAssistant: "
    found = comparison_of({"chosen": said + "4", "rejected": said + "22"}, SETTINGS)
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "user"]
    assert found["messages"][1]["content"] == "Hello\nthere" and found["answers"] == WANTED["answers"]


def test_equal_answers_of_a_list_share_a_rank():
    items = [{"text": text, "score": score} for text, score in (("a", 1), ("b", 3), ("c", 1), ("d", 2))]
    found = comparison_of({"prompt": "?", "answers": items}, SETTINGS)
    assert [answer["content"] for answer in found["answers"]] == ["b", "d", "a", "c"]
    assert found["ranks"] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("record", "scores"),
    [
        ({"prompt": "?", "chosen": "a", "rejected": "b", "by": 1.5}, [1.5, 0.0]),
        ({"prompt": "?", "chosen": "a", "rejected": "b", "by": "2"}, [2.0, 0.0]),
        ({"prompt": "?", "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 4}]}, [4, 1]),
    ],
)
def test_margins(record, scores):
    settings = kinds.checked({"rankings": {"margin": "by"}})["rankings"]
    assert comparison_of(record, settings, "rankings")["scores"] == scores
    assert "scores" not in comparison_of(record, SETTINGS)
    for wrong, said in (
        ({"prompt": "?", "chosen": "a", "rejected": "b"}, "no field 'by'"),
        ({"prompt": "?", "chosen": "a", "rejected": "b", "by": -1}, "'by' is -1; it must be a number of at least 0"),
        ({"prompt": "?", "chosen": "a", "rejected": "b", "by": "much"}, "'by' is 'much'"),
        ({"prompt": "?", "answers": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}, "margins .* need scores"),
    ):
        with pytest.raises(ValueError, match=said):
            comparison_of(wrong, settings, "rankings")


def test_a_system_text_and_tools_stay():
    tools = [{"type": "function", "function": {"name": "add"}}]
    record = {"prompt": [{"role": "system", "content": "Be brief."}, *QUESTION], "chosen": "4", "rejected": "22"}
    found = comparison_of(record | {"tools": tools}, SETTINGS)
    assert [message["role"] for message in found["messages"]] == ["system", "user"] and found["tools"] == tools


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, "no field 'prompt'"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "field 'rejected' is null"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "field 'prompt' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "field 'rejected' is empty"),
        ({"prompt": "a", "chosen": 4, "rejected": "c"}, "'chosen' is int; it must be a text, a message"),
        ({"prompt": [1], "chosen": [*QUESTION, GOOD], "rejected": [*QUESTION, BAD]}, "'prompt' is not a text, and not"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no field 'prompt'"),
        ({"chosen": [*QUESTION, GOOD], "rejected": [BAD]}, "'rejected' has no message before its answer"),
        (
            {"prompt": "Other?", "chosen": [*QUESTION, GOOD], "rejected": [*QUESTION, BAD]},
            "does not begin with 'prompt'",
        ),
        ({"prompt": "Hi", "chosen": HUMAN + " 4", "rejected": HUMAN + " 22"}, "does not begin with 'prompt'"),
        (PAIR | {"prompt": QUESTION, "input": "x"}, 'both "messages" and "input"'),
        (PAIR | {"prompt": "a", "images": ["x.png"]}, '"images" is not read'),
        (PAIR | {"prompt": "a", "train": False}, "an answer is excluded from training"),
        ({"prompt": "a", "chosen": [GOOD | {"weight": 0}], "rejected": [BAD]}, "an answer is excluded from training"),
        (
            {"chosen": [{"role": "user", "content": "Other?"}, GOOD], "rejected": [*QUESTION, BAD]},
            "differ before their last messages",
        ),
        (
            {"chosen": HUMAN + " 4", "rejected": HUMAN.replace("Two", "One") + " 22"},
            "differ before their last messages",
        ),
        ({"chosen": HUMAN + " 4", "rejected": HUMAN}, "an answer is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": {"role": "assistant", "content": None}}, "neither .content. nor"),
        ({"chosen": [*QUESTION, GOOD], "rejected": [*QUESTION, *QUESTION]}, "answer"),
        ({"prompt": "a", "answers": [{"answer": "b", "rank": 1}]}, "'answers' must be a list of at least two objects"),
        ({"prompt": "a", "answers": [{"rank": 1}, {"rank": 2}]}, "exactly one of answer, response, .*; it has none"),
        ({"prompt": "a", "answers": [{"text": "b", "rank": 1}, {"text": "c"}]}, "item 2 must have exactly one of rank"),
        (
            {"prompt": "a", "answers": [{"text": "b", "rank": 1}, {"text": "c", "score": 2}]},
            "ranks in some items and scores in others",
        ),
        ({"prompt": "a", "answers": [{"text": "b", "rank": "1"}, {"text": "c", "rank": 2}]}, "it must be a number"),
        ({"prompt": "a", "answers": [{"text": "b", "rank": 1}, {"text": "", "rank": 2}]}, "item 2' is empty"),
    ],
)
def test_what_is_no_comparison_is_named(record, said):
    with pytest.raises(ValueError, match=said):
        comparison_of(record, SETTINGS)
