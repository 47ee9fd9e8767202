"""Judged answers are examples of two segments: the answer, and the answer of the record before to the same prompt."""

import json

import numpy as np
import pytest

from data.batch import from_rows
from data.examples import kinds
from data.examples.example import Context
from data.examples.judged.comparisons import verdict_of
from data.examples.judged.unpaired import GOOD
from data.prepare import prepare
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers

KIND = kinds.KINDS["unpaired"]
SETTINGS = kinds.checked({})["unpaired"]
ASKED = [{"role": "user", "content": "a?"}]
ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a?", "completion": "b", "label": True},
        {"prompt": ASKED, "completion": [ANSWER], "label": 1},
        {"completion": [*ASKED, ANSWER], "label": "true"},
        {"prompt": "a?", "completion": ANSWER, "label": "1"},
        {"prompt": ASKED[0], "completion": "b", "label": 1.0},
        {"completion": "\n\nHuman: a?\n\nAssistant: b", "label": " True"},
    ],
)
def test_every_form_gives_the_same(record):
    asked, said = {"content": "a?", "role": "user"}, {"content": "b", "role": "assistant"}
    assert verdict_of(record, SETTINGS) == {"messages": [asked], "answers": [said], "good": True}
    assert verdict_of(record | {"label": False}, SETTINGS)["good"] is False


@pytest.mark.parametrize("label", ["good", 2, -1, 0.5, None, ""])
def test_other_labels_are_refused(label):
    with pytest.raises(ValueError, match="'label' is"):
        verdict_of({"prompt": "a?", "completion": "b", "label": label}, SETTINGS)


def test_each_answer_stands_beside_that_of_the_record_before():
    words = tokenizers.train(["a"], "byte")
    encode = KIND.encoding(SETTINGS, Context(words, 1024, False, lambda: iter(()))).encode
    records = [{"prompt": f"{i}?", "completion": f"yes {i}", "label": i % 2 == 0} for i in range(3)]
    found = [encode(KIND.parse(record, SETTINGS)) for record in records]
    said = lambda segment: words.decode(segment.targets[segment.trained])
    asked = lambda segment: words.decode(segment.tokens[: len(segment.tokens) - segment.trained.sum() + 1])
    assert [[said(segment) for segment in example] for example in found] == [
        ["yes 0"],
        ["yes 1", "yes 0"],
        ["yes 2", "yes 1"],
    ]
    for i, example in enumerate(found):
        assert [segment.rank for segment in example] == [0, 1][: len(example)]
        assert all(asked(segment).endswith(f"### Instruction:\n{i}?\n\n### Response:") for segment in example)
        assert bool((example[0].marks & GOOD.mark).all()) == (i % 2 == 0)
        assert not any((segment.marks & GOOD.mark).any() for segment in example[1:])


def test_the_other_answer_is_to_another_prompt_and_gets_only_the_room_that_is_left():
    words = tokenizers.train(["a"], "byte", specials=["<|im_start|>", "<|im_end|>"])
    settings = SETTINGS | {"template": "chatml"}
    encode = KIND.encoding(settings, Context(words, 100, False, lambda: iter(()))).encode
    made = [("a?", "yes"), ("a?", "no"), ("b?", "x" * 300), ("c?", "Rome it is"), ("c?", "Milan"), ("d?", "y" * 60)]
    found = [encode(KIND.parse({"prompt": p, "completion": a, "label": 1}, settings)) for p, a in made]
    said = [[words.decode(segment.targets[segment.trained]) for segment in example] for example in found]
    assert said[0] == ["yes"] and said[1] == ["no"]  # there is no other prompt yet
    assert len(said[2]) == 1 and found[2][0].notes and set(said[2][0]) == {"x"}
    own, other = said[3]
    assert own == "Rome it is" and 10 < len(other) < 60 and not found[3][0].notes and not found[3][1].notes
    assert said[4] == ["Milan", said[3][1] + "x" * (len(own) - len("Milan"))]
    assert said[5][0] == "y" * 60
    assert all(sum(len(segment.tokens) for segment in example) <= 100 for example in found)


@pytest.mark.parametrize(
    ("labels", "said"), [((True, True), ["no training record has a bad answer"]), ((True, False), [])]
)
def test_a_missing_verdict_is_a_warning(labels, said):
    records = [KIND.parse({"prompt": "a?", "completion": "b", "label": label}, SETTINGS) for label in labels]
    words = tokenizers.train(["a"], "byte")
    assert list(KIND.encoding(SETTINGS, Context(words, 100, False, lambda: iter(records))).warnings) == said


def test_from_a_table_to_rows(settings, tmp_path):
    lines = ["prompt,completion,label", *(f"{i}?,{'yes' if i % 3 else 'no'} {i},{i % 3 > 0}" for i in range(30))]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    config = settings(f"unpaired:{tmp_path}/a.csv", seq_len=400, tokenizer={"kind": "byte"}, validation=0.2)
    prepared = prepare(config, tmp_path / "out", lambda line: None)
    words, (source,) = tokenizers.load(prepared.tokenizer_path), prepared.sources
    found = {}
    for split in ("train", "validation"):
        reader = RowReader(getattr(source, split), 400, channels=source.channels)
        batch = from_rows(reader.read(range(len(reader))), source.channels)
        for row, segment in zip(*np.nonzero(batch["positions"] == 0), strict=True):
            here = (batch["segment_ids"][row] == batch["segment_ids"][row, segment]) & (batch["weights"][row] > 0)
            if here.any() and not batch["ranks"][row][here].any():
                found[words.decode(batch["targets"][row][here])] = bool(batch["good"][row][here].all())
    assert found == {f"{'yes' if i % 3 else 'no'} {i}": i % 3 > 0 for i in range(30)}


def test_only_good_answers_are_graded():
    record = {"prompt": "a?", "completion": "b", "label": True}
    good, bad = (KIND.parse(record | {"label": label}, SETTINGS) for label in (True, False))
    assert KIND.asking.question(good).messages == good["messages"] and KIND.asking.question(bad) is None


def test_a_config_names_the_fields():
    names = SETTINGS | {"prompt": "q", "completion": "text", "label": "ok"}
    assert verdict_of({"q": "a?", "text": "b", "ok": 0}, names)["good"] is False
    with pytest.raises(ValueError, match=r"config\.data\.unpaired\.label"):
        verdict_of({"q": "a?", "text": "b"}, names)
    assert json.dumps(verdict_of({"q": "a?", "text": "b", "ok": 0}, names))
