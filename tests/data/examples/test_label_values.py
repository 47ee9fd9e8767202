"""Missing labels are recognized, labels that look alike are reported, and integer classes are ordered by value."""

import json
import math

import pytest

from data.examples import kinds, labels
from data.prepare import prepare


def quiet(line: str) -> None: ...


def write(folder, name: str, content: str):
    path = folder / name
    path.write_text(content)
    return path


@pytest.fixture
def config(settings):
    """Returns `config(path, block, **changes)`, which makes the data block of a config with labels."""

    def config(path, block=None, **changes) -> dict:
        block = {"read": "last"} | (block or {})
        defaults = dict(
            sources=(), path=str(path), format="labels", labels=block, seq_len=64, tokenizer={"kind": "byte"}
        )
        return settings(**(defaults | changes))

    return config


@pytest.mark.parametrize("nothing", [None, -100, -100.0, "-100", math.nan, "", " ", "nan", "NaN"])
def test_what_says_that_there_is_no_label_is_no_class(nothing):
    parse = lambda record, kind: kinds.KINDS["labels"].parse(record, labels.FIELDS | {"kind": kind})
    found = parse({"tokens": ["a", "b", "c"], "labels": ["x", nothing, 0]}, "token")
    assert found["labels"] == ["x", None, "0"]
    with pytest.raises(
        ValueError, match=r"field 'label' is (null|.*, which means no label); fill it in or remove the record"
    ):
        parse({"text": "a", "label": nothing}, "class")


@pytest.mark.parametrize("name", ["text", "label", "pair", "part"])
def test_a_field_that_is_null_is_named_and_the_config_is_not_blamed(name):
    record = {"text": "a", "label": "x", "pair": "b", "part": "train"}
    settings = labels.FIELDS | {"pair": "pair", "split": "part"}
    assert kinds.KINDS["labels"].parse(record, settings)
    with pytest.raises(ValueError, match=f"field '{name}' is null; fill it in or remove the record"):
        kinds.KINDS["labels"].parse(record | {name: None}, settings)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([10, 2, 0, 1], ["0", "1", "2", "10"]),
        (["10", "-3", "9"], ["-3", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["10", "9", "09"], ["09", "10", "9"]),
    ],
)
def test_integer_labels_have_the_order_of_their_values(config, tmp_path, given, names):
    lines = [json.dumps({"text": f"t {i}", "label": given[i % len(given)]}) for i in range(80)]
    facts = prepare(config(write(tmp_path, "n.jsonl", "\n".join(lines))), tmp_path, quiet).sources[0].facts
    assert facts["names"] == names
    assert facts["counts"] and sum(facts["counts"]) < 80


@pytest.mark.parametrize(
    ("given", "alike"),
    [
        (["pos", "pos ", "neg"], ["'pos' (", "'pos ' ("]),
        ([True, "true", "no"], ["'True' (", "'true' ("]),
        (["a b", "A  b", "c"], ["'A  b' (", "'a b' ("]),
        (["ﬁt", "fit", "c"], ["'fit' (", "'ﬁt' ("]),
        (["a", "b", "c"], []),
        ([0, 1, 10], []),
    ],
)
def test_labels_that_look_alike_are_named(config, tmp_path, given, alike):
    said, lines = [], [json.dumps({"text": f"t {i}", "label": given[i % len(given)]}) for i in range(60)]
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    prepare(config("", sources=((f"labels:{path}", 1.0), (f"labels:{path}", 2.0))), tmp_path, said.append)
    warnings = [line for line in said if line.startswith("warning: ")]
    assert len(warnings) == bool(alike)
    for name in alike:
        assert "a.jsonl: these labels count as different classes" in warnings[0] and name in warnings[0]


def test_integers_of_any_length_are_in_order():
    names = ["-10", "-9", "0", "2", "10", "1" + "0" * 5000]
    records = [{"label": name} for name in reversed(names)]
    assert labels._facts("class", records)["names"] == names


def test_one_number_written_in_two_ways_is_said():
    (said,) = labels._alike({"1": 3, "1.0": 2, "01": 1, "2": 5})
    assert "'1' (3 times), '1.0' (2 times), '01' (1 times)" in said
