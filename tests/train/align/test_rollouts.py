"""Rollouts that are saved after any step of a round hand over the same batches as those that go on."""

import json

import numpy as np
import optax
import pytest

from data.batch import DataError
from tests.train.align import toy
from train import state as states
from train.align.rounds import Rewards
from train.objectives.policy import Policy


@pytest.mark.parametrize("skipping", [False, True], ids=["all", "some do not count"])
def test_a_position_after_every_step(skipping):
    """Also if some answers do not count, and in the first pass, when not all answers were handed over."""

    def score(prompts, texts):
        counted = np.array([len(text) % 2 == 0 or not skipping for text in texts])
        return Rewards(np.array([len(text) for text in texts], float), counted, {})

    make = lambda place=None: toy.rollouts(
        Policy().sampling(1.0, toy.LONGEST, toy.END + 1),
        size=8,
        group=8,
        epochs=2,
        minibatches=3,
        rewards=score,
        place=place,
    )
    state, whole = states.around(toy.model(), optax.sgd(0.1)), make()
    places, batches = [], []
    for _ in range(8):
        places.append(json.loads(json.dumps(whole.to_json())))
        batches.append(whole.next(state))
    for place, batch in zip(places, batches, strict=True):
        again = make(place).next(state)
        assert again.keys() == batch.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_rounds_without_anything_to_learn_from_end_the_run():
    """The last of ten rounds may teach something; after ten, the error has the figures and the reasons."""
    judged = []

    def score(prompts, texts, good=None):
        judged.append(1)
        counted = np.full(len(texts), len(judged) == good)
        return Rewards(np.arange(len(texts), dtype=float), counted, {}, len(texts), ("short failed on 8 of 8",))

    def make(good=None):
        judged.clear()
        reward = lambda prompts, texts: score(prompts, texts, good)
        return toy.rollouts(Policy().sampling(1.0, toy.LONGEST, toy.END + 1), size=8, group=8, rewards=reward)

    state = states.around(toy.model(), optax.sgd(0.1))
    assert make(good=10).next(state) and len(judged) == 10
    with pytest.raises(DataError, match=r"10 rounds .* left_out 1, failed_rewards 8\n  short failed on 8 of 8"):
        make().next(state)
    assert len(judged) == 10
