"""Goodput counts each second once, over all processes of a run."""

import time

import jax
import jax.numpy as jnp
import pytest

from train.watch import goodput
from train.watch.goodput import Goodput, continued
from train.watch.phases import Phases


def test_a_run_that_was_killed_twice():
    """Each process takes 10 s: 2 to start and 8 of steps, with a checkpoint after 4 s of steps and a kill after 8."""
    saved, last, now = {}, {}, [0.0]
    for start in range(1, 4):
        phases = Phases(lambda: now[0])
        one = Goodput(phases, continued(saved, last, between=5.0 if last else 0.0))
        with phases("start"):
            now[0] += 2
        with phases("step"):
            now[0] += 4
        saved = one.wall()
        with phases("step"):
            now[0] += 4
        last = one.wall()
        assert goodput.total(last) == 10 * start and last["starts"] == start
    assert last == {"lost": 8.0, "other": 0.0, "start": 6.0, "step": 16.0, "starts": 3, "between": 10.0}
    assert goodput.share(last) == 16 / 30
    assert goodput.line(last) == (
        "goodput 53.3% of 30.0 s: step 16.0 s, lost 8.0 s, start 6.0 s; 3 starts, 10.0 s between them"
    )


def test_a_roll_back_is_no_start():
    saved = {"step": 4.0, "start": 1.0, "starts": 2, "between": 7.0}
    last = {"step": 9.0, "start": 1.0, "compile": 1.0, "starts": 2, "between": 7.0}
    expected = {"step": 4.0, "lost": 5.0, "start": 1.0, "compile": 1.0, "starts": 2, "between": 7.0}
    assert goodput.rolled_back(saved, last) == expected


def test_starts_that_came_to_nothing():
    """Two starts after the same checkpoint ended before they logged a line."""
    saved = {"step": 4.0, "starts": 1, "between": 0.0}
    first = continued(saved, {}, 5.0)
    second = continued(saved, first, 7.0)
    assert (second["starts"], second["between"], second["step"]) == (3, 12.0, 4.0)


def test_a_new_run():
    assert continued({}, {}, between=3.0) == {"starts": 1, "between": 0.0}
    assert goodput.share({}) == 0 and goodput.parts({}) == {}


def test_without_a_checkpoint_all_steps_are_lost():
    last = {"step": 5.0, "start": 1.0, "starts": 1, "between": 0.0}
    assert continued({}, last, 2.0) == {"step": 0.0, "lost": 5.0, "start": 1.0, "starts": 2, "between": 2.0}


def test_what_jax_compiles_is_counted():
    """Tracing, lowering and compiling of a program and of its inner programs count once; running does not count."""
    phases = Phases()
    with goodput.counted(phases), phases("step"):
        program = jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c) @ c, None), x, None, 7)[0])
        program(jnp.ones((32, 32))).block_until_ready()
        compiling = phases.seconds()["compile"]
        assert compiling > 0
        time.sleep(0.05)
        program(jnp.ones((32, 32))).block_until_ready()
    seconds = phases.seconds()
    assert seconds["compile"] == pytest.approx(compiling) and seconds["step"] >= 0.05
    before = phases.seconds()["compile"]
    with phases("step"):
        jax.jit(lambda x: x * 17)(jnp.ones(3))
    assert phases.seconds()["compile"] == before  # nothing listens after the context
