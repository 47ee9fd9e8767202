"""Tests the notes about a valid run that its user would want to know."""

import pytest

from launch.run import checks, models


def test_a_weight_that_is_too_small_for_this_run_is_noted(tiny):
    (first,) = tiny.data.sources
    tiny.data.sources, tiny.steps, tiny.batch_size = (first, ("stdlib", 1e-4)), 100, 8
    (note,) = checks.notes(tiny, models.model_config(tiny, 64), {})
    assert note.startswith("note: stdlib has weight 0.0001 of") and "less than one row in the 800 rows" in note
    tiny.steps = 100_000
    assert not checks.notes(tiny, models.model_config(tiny, 64), {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model.window": 16},
            "config.model.window has no effect: config.model.attention_pattern has no",
        ),
        ({"model.share_inner": 2}, "config.model.share_inner has no effect: config.model.share_groups is 0"),
        ({"model.rope.factor": 8.0}, "config.model.rope.factor has no effect: config.model.rope.scaling is 'none'"),
        ({"model.rope.scaling": "linear", "model.rope.beta_slow": 2.0}, "config.model.rope.scaling is 'linear'"),
    ],
)
def test_a_field_without_effect_is_noted(changes, said, tiny):
    assert not checks.notes(tiny, models.model_config(tiny, 64), {})
    with tiny.unlocked():
        tiny.model.rope = dict(scaling="none", factor=1.0, beta_slow=1.0)
        tiny.model.share_inner, tiny.model.window = 1, 0
    tiny.update_from_flattened_dict(changes)
    (note,) = checks.notes(tiny, models.model_config(tiny, 64), {})
    assert note.startswith("note: ") and said in note
