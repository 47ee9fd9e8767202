"""Completions before and after stand beside each other, whole, escaped and with their whitespace."""

import json

import pytest

from tests.train.report.pages import report, sections

EVIL = "</pre><script>alert('&')</script>\n\n  indented\ttext  "


def page(workdir, first, last):
    side = lambda step, shown: {
        "step": step,
        "shown": [dict(zip(("prompt", "completion", "reward"), one, strict=True)) for one in shown],
    }
    both = {
        name: side(step, shown) for name, step, shown in (("first", 0, first), ("last", 40, last)) if shown is not None
    }
    (workdir / "summary.json").write_text(json.dumps({"completions": both}))
    found = report(workdir)
    return sections(found).get("Completions before and after"), found


def cards(section):
    """Returns [prompt, what stands on the left, on the right] of each card."""
    found = []
    for card in section.all("div", "card"):
        (sides,) = card.all("div", "sides")
        left, right = (one for one in sides.inside if not isinstance(one, str))
        found.append([card.all("div", "prompt")[0].text.strip("\n"), left, right])
    return found


def written(side):
    return side.all("pre")[0].text.removeprefix("\n") if side.all("pre") else None


def test_each_prompt_has_both_completions(tmp_path):
    first = [("b", "early b", 0.25), ("a", "early a", 0), ("only first", "x", None)]
    last = [("a", "late a", 1.0), ("b", "late b", -0.5), ("only last", "y", 3)]
    section, _ = page(tmp_path, first, last)
    assert [prompt for prompt, *_ in cards(section)] == ["a", "b", "only last", "only first"]
    found = {prompt: (written(left), written(right)) for prompt, left, right in cards(section)}
    assert found == {
        "a": ("early a", "late a"),
        "b": ("early b", "late b"),
        "only last": (None, "y"),
        "only first": ("x", None),
    }
    heads = {prompt: (left.all("small")[0].text, right.all("small")[0].text) for prompt, left, right in cards(section)}
    assert heads["a"] == ("step 0reward 0", "step 40reward 1") and heads["b"][1] == "step 40reward -0.5"
    assert heads["only first"] == ("step 0", "step 40")


def test_a_prompt_that_was_sampled_twice_has_two_pairs(tmp_path):
    section, _ = page(tmp_path, [("p", "a1", 0), ("p", "a2", 0)], [("p", "b1", 0), ("p", "b2", 0), ("p", "b3", 0)])
    assert [(written(left), written(right)) for _, left, right in cards(section)] == [
        ("a1", "b1"),
        ("a2", "b2"),
        (None, "b3"),
    ]


def test_texts_are_escaped_and_keep_their_whitespace(tmp_path):
    section, found = page(tmp_path, [(EVIL, "\n" + EVIL, 0)], [(EVIL, EVIL, 0)])
    ((prompt, left, right),) = cards(section)
    assert not found.all("script") and prompt == EVIL and written(left) == "\n" + EVIL and written(right) == EVIL


@pytest.mark.parametrize("text", ["word " * 400, "line\n" * 40], ids=["long", "many lines"])
def test_long_texts_are_folded_but_whole(text, tmp_path):
    section, _ = page(tmp_path, [("p", "short", 0)], [("p", text, 0)])
    ((_, left, right),) = cards(section)
    assert not left.all("details") and len(right.all("details")) == 1 and written(right) == text
    (summary,) = right.all("summary")
    beginning = summary.all("span")[0].text.removesuffix("…")
    assert beginning and text.startswith(beginning) and len(beginning) < 400 and f"{len(text):,}" in summary.text


def test_an_empty_completion_is_named(tmp_path):
    section, _ = page(tmp_path, [("p", "", 0)], [("p", "full", 0)])
    ((_, left, _),) = cards(section)
    assert written(left) is None and left.all("p")[0].text == "empty"


def test_only_one_of_both(tmp_path):
    section, found = page(tmp_path, [("p", "a", 0)], None)
    ((_, left, right),) = cards(section)
    assert written(left) == "a" and written(right) is None
    assert "No samples yet" not in found.text  # there are some


def test_none(tmp_path):
    section, found = page(tmp_path, None, None)
    assert section is None and "No samples yet" in found.text
