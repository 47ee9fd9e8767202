"""Exact answers, patterns and lengths: what counts as equal, and what is refused."""

import pytest

from train.align.rewards.reward import RewardError, Settings
from train.align.rewards.table import load


def score(spec, completion, **columns):
    return load(spec, Settings())("prompt", completion, columns)


@pytest.mark.parametrize(
    "completion, answer, value",
    [
        ("Paris", "Paris", 1),
        ("  Paris\n", "Paris ", 1),
        ("paris", "Paris", 0),
        ("Paris.", "Paris", 0),
        ("Paris  France", "Paris France", 0),
        ("café", "cafe\u0301", 1),  # é as one character and as two
        ("102", "10²", 0),
        ("ﬁn", "fin", 0),
        ("", "Paris", 0),
        ("7", 7, 1),
        ("7.0", 7, 0),
        ("b", ["a", "b"], 1),
        ("c", ["a", "b"], 0),
    ],
)
def test_exact(completion, answer, value):
    assert score("exact:answer", completion, answer=answer) == value


@pytest.mark.parametrize("answer", ["", "  ", None, True, 1.5, [], ["a", ""], {"a": 1}])
def test_a_record_that_no_completion_could_equal_is_refused(answer):
    """An empty answer would reward a model for silence."""
    function = load("exact:answer", Settings())
    for call in (lambda: function.check({"answer": answer}), lambda: function("", "", {"answer": answer})):
        with pytest.raises(RewardError, match="column 'answer' must be a text"):
            call()


def test_a_missing_column_is_named_with_those_that_are_there():
    with pytest.raises(RewardError, match=r"no column 'anser'; did you mean 'answer'\? \(it has answer, question\)"):
        score("exact:anser", "x", answer="x", question="q")


@pytest.mark.parametrize(
    "pattern, completion, value",
    [
        (r"yes|no", "yes", 1),
        (r"yes|no", " no\n", 1),
        (r"yes|no", "yes, of course", 0),  # the whole must match
        (r".*\d+", "one\ntwo 2", 1),  # a dot matches line ends
        (r"<think>.*</think>\s*<answer>.+</answer>", "<think>\nwell\n</think>\n<answer>4</answer>", 1),
        (r"<think>.*</think>\s*<answer>.+</answer>", "<answer>4</answer>", 0),
        (r"a:b", "a:b", 1),  # only the first colon of the specification ends the name
        (r"x*", "", 1),
    ],
)
def test_regex(pattern, completion, value):
    assert score(f"regex:{pattern}", completion) == value


@pytest.mark.parametrize("spec, value", [("length:3-5", 1), ("length:4-4", 1), ("length:5-9", 0), ("length:0-3", 0)])
def test_length_counts_characters_without_outer_spaces(spec, value):
    assert score(spec, " äöü日 \n") == value


@pytest.mark.parametrize(
    "spec, message",
    [
        ("regex:a(b", "not a regular expression: missing .* at character 2"),
        ("regex", "needs an argument: regex:PATTERN"),
        ("length:5", "LOW-HIGH in characters, such as 20-400, not '5'"),
        ("length:9-5", "the range of lengths 9-5 is empty; write 5-9"),
        ("length:a-b", "LOW-HIGH"),
        ("exact:", "needs an argument: exact:COLUMN"),
    ],
)
def test_bad_arguments(spec, message):
    with pytest.raises(RewardError, match=message):
        load(spec, Settings())
