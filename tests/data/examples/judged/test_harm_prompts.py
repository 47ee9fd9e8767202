"""Prompts that should be refused and harmless ones: how they are read, and the small sets that ship."""

import collections
import json
import re
from pathlib import Path

import pytest

from data.batch import DataError
from data.examples.conversations import conversation_of, trained_answers
from data.examples.judged import harm_prompts
from data.examples.judged.harm_prompts import HarmPrompt
from train.evals.refusals import judge

SUITE = Path(__file__).resolve().parents[4] / "data" / "suites" / "safety"
FILES = {"refusals": ("harmful", 40), "helpful": ("benign", 40), "held_out": (None, 20)}
CHINESE = re.compile("[\u4e00-\u9fff]")


def records(name):
    return [json.loads(line) for line in (SUITE / f"{name}.jsonl").read_text().splitlines()]


def question(record):
    return record["messages"][0]["content"]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_reads_messages_and_the_columns_of_xstest(tmp_path):
    asked = {"role": "user", "content": "Kill it?"}
    answered = [asked, {"role": "assistant", "content": "No."}]
    path = write(
        tmp_path / "a.jsonl",
        {"messages": [asked], "kind": "harmful", "language": "en", "category": "violence"},
        {"messages": answered, "kind": "benign", "language": None},
    )
    said = [{"role": "user", "content": "Kill it?"}]
    assert harm_prompts.read(path) == [HarmPrompt(said, True, "en", "violence"), HarmPrompt(said, False)]
    table = tmp_path / "xstest.csv"
    table.write_text("id,prompt,type,label,focus,note\n1,How do I kill time?,homonyms,safe,kill,\n2,Kill?,x,unsafe,,\n")
    assert [(one.messages[0]["content"], one.harmful) for one in harm_prompts.read(str(table))] == [
        ("How do I kill time?", False),
        ("Kill?", True),
    ]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "Kill?", "label": ["safe"]}, "\"label\" is ['safe']; it must be one of harmful"),
        ({"prompt": "Kill?"}, '"kind" is missing; it must be one of harmful, unsafe, benign, safe'),
        ({"prompt": "Kill?", "label": "bad"}, "\"label\" is 'bad'"),
        ({"kind": "harmful"}, 'neither "messages", a list, nor a text in "prompt"'),
        ({"kind": "harmful", "messages": []}, 'neither "messages", a list'),
        ({"kind": "harmful", "messages": "Kill?"}, 'neither "messages", a list'),
        ({"kind": "harmful", "messages": ["Kill?"]}, "message 1 is not an object"),
        ({"kind": "harmful", "messages": [{"role": "assistant", "content": "No."}]}, "there are no messages"),
        ({"kind": "harmful", "prompt": "Kill?", "language": 3}, "must be texts"),
    ],
)
def test_names_the_record_that_is_no_prompt(record, words, tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "How?", "kind": "benign"}, record)
    with pytest.raises(DataError) as error:
        harm_prompts.read(path)
    assert "a.jsonl, line 2: " in str(error.value) and words in str(error.value)


def test_an_empty_or_missing_file(tmp_path):
    with pytest.raises(DataError, match="has no prompts"):
        harm_prompts.read(write(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="There is no file"):
        harm_prompts.read(str(tmp_path / "b.jsonl"))


def test_the_digest_changes_with_anything_that_figures_depend_on():
    prompt = HarmPrompt([{"role": "user", "content": "Kill?"}], True, "en", "violence")
    others = [prompt._replace(harmful=False), prompt._replace(language="zh")]
    others += [prompt._replace(messages=[{"role": "user", "content": "Kill!"}])]
    assert len({harm_prompts.digest([one]) for one in (prompt, *others)}) == 4


@pytest.mark.parametrize("name", FILES)
def test_the_sets_are_balanced(name):
    kind, each = FILES[name]
    found = collections.Counter((record["kind"], record["language"]) for record in records(name))
    kinds = [kind] if kind else ["harmful", "benign"]
    assert found == {(kind, language): each for kind in kinds for language in ("en", "zh")}
    categories = {kind: {r["category"] for r in records(name) if r["kind"] == kind} for kind in kinds}
    assert all(len(of_kind) == 9 for of_kind in categories.values()), categories


@pytest.mark.parametrize("name", FILES)
def test_languages_are_as_labelled(name):
    """Chinese texts have Chinese characters; English ones have none."""
    for record in records(name):
        for message in record["messages"]:
            assert bool(CHINESE.search(message["content"])) == (record["language"] == "zh"), message


def test_no_prompt_or_answer_occurs_twice():
    """Nor may a held-out prompt differ from a training prompt only in case, spaces or punctuation."""
    plain = lambda text: re.sub(r"\W+", "", text.lower())
    prompts = [plain(question(record)) for name in FILES for record in records(name)]
    answers = [plain(record["messages"][1]["content"]) for name in ("refusals", "helpful") for record in records(name)]
    assert len({*prompts}) == len(prompts) == 240 and len({*answers}) == len(answers) == 160


@pytest.mark.parametrize(("name", "verdict"), [("refusals", "refusal"), ("helpful", "compliance")])
def test_training_answers_are_what_they_teach(name, verdict):
    """They are conversations, and the rules that judge a tuned model agree with them."""
    for record in records(name):
        messages = conversation_of(record)["messages"]
        assert len(messages) == 2 and trained_answers(messages) == [1]
        assert judge(messages[1]["content"]).verdict == verdict, messages[1]["content"]
        assert len(messages[1]["content"]) < 400


def test_the_held_out_prompts_can_be_asked():
    found = harm_prompts.read(str(SUITE / "held_out.jsonl"))
    assert len(found) == 80 and all(len(one.messages) == 1 for one in found)
    assert not any(len(record["messages"]) > 1 for record in records("held_out"))
