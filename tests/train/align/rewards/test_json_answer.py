"""JSON answers, with and without a schema."""

import json

import pytest

from train.align.rewards.json_answer import Json
from train.align.rewards.reward import RewardError

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}


@pytest.mark.parametrize(
    "completion, value",
    [
        ('{"a": [1, 2.5, null, "é"]}', 1),
        ("[]", 1),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', 1),
        ('```\n{"a": 1}\n```', 1),
        ('```json\n{"a": 1', 0),  # cut off
        ('Here it is: {"a": 1}', 0),
        ("{'a': 1}", 0),
        ('{"a": 1,}', 0),
        ('{"a": NaN}', 0),
        ("[Infinity]", 0),
        ("5", 0),  # valid, but by accident
        ('"text"', 0),
        ("null", 0),
        ("", 0),
        ("[" * 100_000, 0),
        ("[" + "9" * 10_000 + "]", 0),
    ],
)
def test_json(completion, value):
    assert Json()("", completion, {}) == value


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
@pytest.mark.parametrize(
    "completion, value",
    [('{"age": 3}', 1), ('{"age": -3}', 0), ('{"age": "3"}', 0), ("{}", 0), ("[]", 0), ("age: 3", 0), ("", 0)],
)
def test_schema(schema, completion, value):
    function = Json("schema")
    function.check({"schema": schema})
    assert function("", completion, {"schema": schema}) == value


def test_a_schema_may_ask_for_a_bare_value():
    assert Json("schema")("", "5", {"schema": {"type": "integer"}}) == 1


@pytest.mark.parametrize("schema", ["{", {"type": "number?"}, "5", 5, None, ["a"]])
def test_a_broken_schema_is_refused(schema):
    with pytest.raises(RewardError, match="column 'schema' is not a JSON schema"):
        Json("schema").check({"schema": schema})


def test_a_reference_is_not_read_from_the_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(Exception, match="Unresolvable"):
        Json("schema")("", "{}", {"schema": {"$ref": "http://example.com/schema.json"}})
