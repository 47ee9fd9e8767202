"""Prompts keep their columns, are written like questions of a conversation, and are not packed into rows."""

import json

import numpy as np
import pytest

from data.batch import DataError
from data.examples import kinds
from data.prepare import prepare
from data.tokens import tokenizer as tokenizers

KIND = kinds.KINDS["prompts"]
FIELDS = KIND.fields


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "2 + 2?", "answer": 4}, [("user", "2 + 2?")]),
        ({"prompt": [{"role": "user", "content": "2 + 2?"}]}, [("user", "2 + 2?")]),
        ({"messages": [{"role": "user", "content": "2 + 2?"}], "tests": ["assert x"]}, [("user", "2 + 2?")]),
        ({"prompt": "\n\nHuman: a?\n\nAssistant: b\n\nHuman: 2 + 2?\n\nAssistant:"},
         [("user", "a?"), ("assistant", "b"), ("user", "2 + 2?")]),
        ({"prompt": "2 + 2?", "system": "Be brief."}, [("system", "Be brief."), ("user", "2 + 2?")]),
    ],
)  # fmt: skip
def test_forms(record, said):
    found = KIND.parse(record, FIELDS)
    assert [(message["role"], message["content"]) for message in found["messages"]] == said
    assert found["columns"] == record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "a?"}, r"no field 'prompt', only question; set config\.data\.prompts\.prompt"),
        ({"prompt": ""}, "is empty"),
        ({"prompt": 3}, "is not a text"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "the last message is of the role assistant"),
        ({"prompt": "a?", "system": 1}, "'system' is int"),
        ({"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "system": "c"}, "keep one"),
    ],
)
def test_mistakes(record, said):
    with pytest.raises(ValueError, match=said):
        KIND.parse(record, FIELDS)


def test_they_are_prepared_without_rows(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": i} for i in range(50)]
    rows += rows[:1]  # a copy
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"sources": (), "path": str(tmp_path / "p.jsonl"), "format": "prompts", "seq_len": 32, "validation": 0.3}
    config |= {"tokenizer": {"kind": "byte"}, "prompts": {"template": "plain"}}
    prepared = prepare(config, tmp_path / "data", log=lambda line: None)
    (source,) = prepared.sources
    assert source.train_rows == source.validation_rows == 0 and source.channels == prepared.channels == ()
    found = [record["columns"] for split in ("train", "validation") for record in prepared.records(source, split)]
    assert sorted(found, key=lambda row: row["answer"]) == sorted(rows, key=lambda row: row["answer"])
    dropped = prepare(config | {"copies": "drop"}, tmp_path / "data", log=lambda line: None)
    held = [record["columns"]["answer"] for record in dropped.records(dropped.sources[0], "validation")]
    kept = [record["columns"]["answer"] for record in dropped.records(dropped.sources[0], "train")]
    assert not {*held} & {*kept} and len(kept) == dropped.sources[0].train_documents


def test_the_prompt_is_that_of_tuning_on_conversations():
    words = tokenizers.train(["a"], "byte")
    settings = {"template": "plain", "system": ""}
    question = KIND.asking.question(KIND.parse({"prompt": "2 + 2="}, FIELDS))
    found = KIND.asking.prompts(settings, words, [question], False)
    chat = kinds.KINDS["chat"].asking
    assert found.prompts == chat.prompts(settings, words, [chat.of_text("2 + 2=", "")], False).prompts
    assert words.decode(found.prompts[0]) == "2 + 2=" and found.prompts[0][0] == words.special.begin
    assert found.answer(words, np.array([*words.encode("4"), *found.ends[:1]])) == "4"


def test_an_encoder_decoder_is_refused():
    with pytest.raises(DataError, match="prompts:GLOB are for decoders"):
        kinds.check_encoder("prompts", True)
