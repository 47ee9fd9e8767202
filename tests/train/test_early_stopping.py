"""Early stopping equals counts by hand, and knows for each metric whether lower or higher is better."""

import json
import math

import pytest

from train.early_stopping import EarlyStopping, UnknownMetric, lower_is_better


def followed(values, metric="validation/loss", **settings):
    """Returns [(best so far, ended)] after each value; the counters are saved and restored in between."""
    seen, saved = [], None
    for step, value in enumerate(values, 1):
        stopping = EarlyStopping(metric, **settings, saved=saved)
        seen.append((stopping.update(step, {metric: value}), stopping.ended))
        saved = json.loads(json.dumps(stopping.to_json()))
    return seen, stopping


def test_waits_for_patience_evaluations_in_a_row():
    """An improvement resets the count; an equal value is no improvement."""
    seen, stopping = followed([3.0, 2.0, 2.5, 2.0, 1.9, 2.0, 2.1, 1.9], patience=3)
    assert [best for best, _ in seen] == [True, True, False, False, True, False, False, False]
    assert [ended for _, ended in seen] == [False] * 7 + [True]
    assert stopping.best() == {"metric": "validation/loss", "value": 1.9, "step": 5}
    assert stopping.why() == "validation/loss was best at step 5 (1.9) and has not improved in the last 3 evaluations"


def test_small_steps_are_waiting_but_the_last_of_them_is_the_best():
    """Values improve by 0.1. With min_delta 0.25 every third one resets the count; with 0.35 the third is too late."""
    values = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4]
    seen, stopping = followed(values, patience=3, min_delta=0.25)
    assert all(best for best, _ in seen) and not stopping.ended and stopping.step == 7
    seen, stopping = followed(values[:4], patience=3, min_delta=0.35)
    assert [ended for _, ended in seen] == [False, False, False, True] and stopping.step == 4
    assert "has not improved by more than 0.35" in stopping.why()


def test_higher_is_better_and_what_is_not_finite_never_is():
    seen, stopping = followed([math.nan, 0.0, 0.5, math.inf, 0.4], "validation/news/macro_f1", patience=2)
    assert seen == [(False, False), (True, False), (True, False), (False, False), (False, True)]
    assert (stopping.value, stopping.step) == (0.5, 3)
    _, stopping = followed([math.nan, math.nan], patience=2)
    assert stopping.ended and stopping.best() is None and "never finite" in stopping.why()


def test_without_patience_it_never_ends():
    assert not any(ended for _, ended in followed([1.0] + [2.0] * 50)[0])


LOWER = ["loss", "perplexity", "bits_per_byte", "mse", "mae", "answer_loss", "rejected_reward"]
LOWER += ["over_refusal", "harmful_answered"]
HIGHER = ["accuracy", "f1", "matthews", "pearson", "bleu", "rougeL", "chrf", "exact_match", "margin", "chosen_reward"]


@pytest.mark.parametrize("name", LOWER)
def test_lower_is_better(name):
    assert lower_is_better(f"validation/{name}") and lower_is_better(f"validation/accuracy/{name}")


@pytest.mark.parametrize("name", HIGHER)
def test_higher_is_better(name):
    assert not lower_is_better(f"validation/{name}") and not lower_is_better(f"validation/loss/{name}")


def test_unknown_metrics_are_named_with_what_there_is():
    with pytest.raises(UnknownMetric, match=r"'validation/unigram'.*higher: accuracy, f1"):
        EarlyStopping("validation/unigram")
    stopping = EarlyStopping("validation/accuracy", patience=1)
    with pytest.raises(UnknownMetric, match=r"is 'validation/accuracy'; .*: validation/loss, validation/f1$"):
        stopping.update(1, {"validation/loss": 1.0, "validation/f1": 0.5, "validation/confusion": [[1, 2], [3, 4]]})


def gated(pairs, metric="validation/harmful_answered", bounded="validation/over_refusal", bound=0.1, patience=0):
    """Returns what `followed` returns, for (metric, bounded metric) after each step."""
    seen, saved = [], None
    for step, pair in enumerate(pairs, 1):
        stopping = EarlyStopping(metric, patience, saved=saved, bounded=bounded, bound=bound)
        seen.append((stopping.update(step, dict(zip((metric, bounded), pair, strict=True))), stopping.ended))
        saved = json.loads(json.dumps(stopping.to_json()))
    return seen, stopping


def test_beyond_the_bound_an_evaluation_is_neither_the_best_nor_an_improvement():
    """The bound itself is allowed. A model that refuses everything answers nothing harmful, and is still never best."""
    pairs = [(0.9, 0.0), (0.4, 0.1), (0.0, 1.0), (0.2, 0.31), (0.1, 0.11), (0.3, 0.05)]
    seen, stopping = gated(pairs)
    assert [best for best, _ in seen] == [True, True, False, False, False, True]
    assert stopping.best() == {"metric": "validation/harmful_answered", "value": 0.3, "step": 6}
    words = "Best: step 6, validation/harmful_answered 0.3, while validation/over_refusal <= 0.1"
    assert stopping.outcome() == words
    seen, stopping = gated(pairs, patience=3)
    assert [ended for _, ended in seen] == [False] * 4 + [True, False] and stopping.step == 6
    figures = {"validation/harmful_answered": 0.2, "validation/over_refusal": 0.31}
    assert stopping.excluded(figures) == "validation/over_refusal 0.31 > 0.1" and math.isnan(stopping.rank(figures))
    figures["validation/over_refusal"] = 0.1
    assert stopping.excluded(figures) == "" and stopping.rank(figures) == 0.2


def test_no_evaluation_within_the_bound():
    seen, stopping = gated([(0.0, 1.0), (0.0, math.nan)], patience=2)
    assert seen == [(False, False), (False, True)] and stopping.best() is None
    assert "validation/over_refusal <= 0.1 never held" in stopping.why()
    assert stopping.outcome().startswith("No checkpoint is the best one")


def test_a_bound_from_below_where_higher_is_better():
    seen, stopping = gated([(2.0, 0.8), (1.0, 0.79)], "validation/loss", "validation/accuracy", 0.8)
    assert seen == [(True, False), (False, False)]
    found = stopping.excluded({"validation/loss": 1.0, "validation/accuracy": 0.79})
    assert found == "validation/accuracy 0.79 < 0.8"


def test_mistakes_in_a_bound():
    with pytest.raises(UnknownMetric, match=r"^bounded is 'validation/unigram'"):
        EarlyStopping("validation/loss", bounded="validation/unigram", bound=0.1)
    with pytest.raises(ValueError, match=r"bound is 0\.1, but bounded names no metric"):
        EarlyStopping("validation/loss", bound=0.1)
    stopping = EarlyStopping("validation/loss", bounded="validation/over_refusal")
    with pytest.raises(
        UnknownMetric, match=r"early_stopping.bounded is 'validation/over_refusal'; .* validation/loss$"
    ):
        stopping.update(1, {"validation/loss": 1.0})
    assert EarlyStopping("validation/loss").outcome() == ""
