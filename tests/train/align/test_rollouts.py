"""Rollouts that are saved after any step of a round hand over the same batches as those that go on."""

import json

import numpy as np
import optax
import pytest

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
        Policy().sampling(1.0, toy.END + 1), size=8, group=8, epochs=2, minibatches=3, rewards=score, place=place
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
