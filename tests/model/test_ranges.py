"""A range contains the right values, and gives clear messages for others."""

import math

import pytest

from model import ranges


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("int [1, inf)", (1, 2, 10**30), (0, -1, 1.0, True, "1", None, math.nan, math.inf, (1,))),
        ("int -1 or [1, inf)", (-1, 1), (0, -2, -1.0, None, True)),
        ("int None or [0, 5]", (None, 0, 5), (6, -1, False, "None")),
        ("float [0, 1)", (0, 0.0, 0.999), (1, 1.0, -1e-9, math.nan, True, "0.5", None)),
        ("float (0, 1]", (1e-300, 1), (0, 0.0, 1.0001, math.inf)),
        ("float (-inf, inf)", (-1e300, 0, 3), (math.nan, math.inf, -math.inf, "", False)),
    ],
)
def test_what_a_range_has(interval, inside, outside):
    assert [value for value in inside if ranges.problem(value, interval)] == []
    assert [value for value in outside if not ranges.problem(value, interval)] == []


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ("int [1, inf)", "model.x is 'a'; it must be a whole number of at least 1"),
        ("int -1 or [1, inf)", "model.x is 'a'; it must be -1 or a whole number of at least 1"),
        ("float (0, inf)", "model.x is 'a'; it must be a number above 0"),
        ("float [0, 1]", "model.x is 'a'; it must be a number from 0 to 1"),
        ("float [0, 1)", "model.x is 'a'; it must be a number in [0, 1)"),
        ("float (-inf, inf)", "model.x is 'a'; it must be a number that is finite"),
    ],
)
def test_the_message_names_field_value_and_range(interval, words):
    with pytest.raises(ValueError) as caught:
        ranges.check("a", interval, "model.x")
    assert str(caught.value) == words


@pytest.mark.parametrize("text", ["[0, 1]", "int [0 1]", "float 0, 1", "number (0, inf)"])
def test_a_text_that_is_no_range(text):
    with pytest.raises(ValueError, match="is not a range like"):
        ranges.problem(1, text)
