"""Batches of rewards: order, weights, and functions that fail, hang, crash or return nonsense."""

import json
import time

import numpy as np
import pytest

from tests.train.align.rewards.batches import FILE, items
from train.align.rewards.reward import RewardError
from train.align.rewards.scoring import Item, Scoring


def test_values_keep_their_order_and_add_up():
    batch = items({"answer": i % 3} for i in range(50))
    batch = [item._replace(completion=f"{'y' * i} {i % 2}") for i, item in enumerate(batch)]
    with Scoring([("numeric:answer", 2.0), (f"{FILE}:length", -0.5), ("length:0-9", 0)]) as scoring:
        scoring.check([item.columns for item in batch])
        scored = scoring.score(batch)
        again = scoring.score(batch[::-1])
        assert scoring.score([]).values_NF.shape == (0, 3)
    expected = [[i % 3 == i % 2, i + 2, i + 2 <= 9 or i + 1 <= 0] for i in range(50)]
    expected[0][1], expected[0][2] = 2, 1
    np.testing.assert_array_equal(scored.values_NF, np.array(expected, np.float32))
    assert scored.values_NF.dtype == scored.rewards_N.dtype == np.float32
    np.testing.assert_array_equal(scored.rewards_N, scored.values_NF @ np.array([2, -0.5, 0], np.float32))
    np.testing.assert_array_equal(again.values_NF[::-1], scored.values_NF)
    assert not scored.failed_NF.any() and not scored.skipped_N.any() and scored.notes == []


def test_what_is_no_number_is_a_failure():
    kinds = ["true", "int", "fraction", "decimal", "none", "nan", "inf", "huge", "text", "list", "complex"]
    with Scoring([(f"{FILE}:given", 1.0)]) as scoring:
        scored = scoring.score(items({"value": kind} for kind in kinds))
    np.testing.assert_array_equal(scored.values_NF[:, 0], [1, 3, 0.25, 0.5] + [0] * 7)
    np.testing.assert_array_equal(scored.failed_NF[:, 0], [False] * 4 + [True] * 7)
    notes = "\n".join(scored.notes)
    assert "given' failed on 1 of 11 completions: returned None instead of a number; does every path" in notes
    assert "first prompt: 'prompt 4'" in notes and "nan, which is not a finite number" in notes
    assert "for 2 other reasons" in scored.notes[-1] and len(scored.notes) == 6


@pytest.mark.parametrize("on_error", ["zero", "skip"])
def test_failures_are_counted_and_the_rest_is_scored(on_error):
    """A worker that hangs or dies is replaced, and no other completion suffers."""
    kinds = ["", "raise", "leave", "crash", "", "memory", "sleep", "lock", "exit", "key", "interrupt", "raise", ""]
    bad = np.array([bool(kind) for kind in kinds])
    started = time.monotonic()
    with Scoring([(f"{FILE}:fails", 1.0), (f"{FILE}:length", 1.0)], seconds=1.5, on_error=on_error) as scoring:
        scored = scoring.score(items({"fail": kind} for kind in kinds))
        assert scoring.score(items([{}])).rewards_N == [1]
    assert time.monotonic() - started < 20
    np.testing.assert_array_equal(scored.failed_NF, np.stack([bad, np.zeros_like(bad)], 1))
    np.testing.assert_array_equal(scored.values_NF[:, 0], ~bad)
    np.testing.assert_array_equal(scored.values_NF[:, 1], np.arange(13))
    np.testing.assert_array_equal(scored.skipped_N, bad & (on_error == "skip"))
    notes = "\n".join(scored.notes)
    assert "failed on 2 of 13 completions: ZeroDivisionError: division by zero; first prompt: 'prompt 1'" in notes
    assert "failed on 2 of 13 completions: took longer than 1.5 s; first prompt: 'prompt 6'" in notes
    counts = [int(note.partition("failed on ")[2].partition(" ")[0]) for note in scored.notes]
    assert sum(counts) == bad.sum()


def test_reasons_say_how_a_process_ended():
    with Scoring([(f"{FILE}:fails", 1.0)]) as scoring:
        for kind, reason in {
            "leave": "ended its process (exit status 3)",
            "crash": "ended its process (signal 11, Segmentation fault)",
            "memory": "ended its process (signal 9, Killed)",
            "key": "KeyError: 'anser' (the record has answer, fail)",
            "exit": "SystemExit: 3",
        }.items():
            assert reason in scoring.score(items([{"fail": kind, "answer": 1}])).notes[0]


def test_stop_names_the_function_the_prompt_and_the_line():
    with Scoring([(f"{FILE}:length", 1.0), (f"{FILE}:fails", 1.0)], on_error="stop") as scoring:
        with pytest.raises(RewardError) as error:
            scoring.score(items([{}, {"fail": "raise"}, {}]))
        assert scoring.score(items([{}])).rewards_N == [1]  # it goes on
    text = str(error.value)
    assert f"{FILE}:fails" in text and "prompt: 'prompt 1'" in text and "return 1 / 0" in text
    assert text.endswith("ZeroDivisionError: division by zero") and "worker.py" not in text


def test_large_and_odd_records():
    record = {"text": "ä" * 500_000, "odd": "\ud800\u2028\0", "nested": [{"a": None}] * 1000, "nan": float("nan")}
    with Scoring([(f"{FILE}:length", 1.0), ("exact:odd", 1.0)]) as scoring:
        assert scoring.score([Item("p", "\ud800\u2028\0" * 100_000, record)]).values_NF.tolist() == [[300_000, 0]]
        assert scoring.score([Item("p", "\ud800\u2028\0", record)]).values_NF.tolist() == [[3, 1]]
        with pytest.raises(RewardError, match="a value that JSON has not: Object of type bytes"):
            scoring.score([Item("p", "c", {"image": b"x"})])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(functions=[]), "there is no reward function"),
        (dict(functions=[("json", float("nan"))]), "weights .* finite"),
        (dict(functions=[("json", 1.0)], on_error="skipp"), "one of zero, skip, stop, not 'skipp'; did you mean"),
        (dict(functions=[("json", 1.0)], seconds=0), "needs 0.01 seconds or more, not 0"),
        (dict(functions=[("python:tests", 1.0)], seconds=2), "needs 3 seconds or more, not 2"),
        (dict(functions=[("json", 1.0), ("regex:(", 1.0)]), r"reward 'regex:\(': the pattern"),
        (dict(functions=[("no.py:f", 1.0)]), "reward 'no.py:f': there is no file no.py"),
        (dict(functions=[("{leaves}:f", 1.0)]), r"ended while it loaded the reward functions \(exit status 7\)"),
    ],
)  # fmt: skip
def test_mistakes_end_at_the_start(tmp_path, arguments, message):
    leaves = tmp_path / "leaves.py"
    leaves.write_text("import os\nos._exit(7)\n")
    functions = [(spec.format(leaves=leaves), weight) for spec, weight in arguments["functions"]]
    with pytest.raises(RewardError, match=message):
        Scoring(**{**arguments, "functions": functions})


def test_records_are_checked_before_anything_is_sampled():
    with Scoring([("json", 1.0), ("numeric:answer", 1.0)]) as scoring:
        scoring.check(json.loads('[{"answer": "1"}, {"answer": 2.5}]'))
        with pytest.raises(RewardError, match=r"reward 'numeric:answer', record 2: the record has no column 'answer'"):
            scoring.check([{"answer": 1}, {"question": 1}])
