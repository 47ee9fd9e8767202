"""Tests the notes about a valid run that its user would want to know."""

from launch.run import checks, models


def test_a_weight_that_is_too_small_for_this_run_is_noted(tiny):
    (first,) = tiny.data.sources
    tiny.data.sources, tiny.steps, tiny.batch_size = (first, ("stdlib", 1e-4)), 100, 8
    (note,) = checks.notes(tiny, models.model_config(tiny, 64), {})
    assert note.startswith("note: stdlib has weight 0.0001 of") and "less than one row in the 800 rows" in note
    tiny.steps = 100_000
    assert not checks.notes(tiny, models.model_config(tiny, 64), {})
