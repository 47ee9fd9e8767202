"""Rows of text beside completions (PPO-ptx): the loss is the policy's plus a coefficient times the language model's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.weights import replaced, trained
from tests.train.align import toy
from train import state as states
from train import step
from train.objectives.policy import Policy

ROWS, COEFFICIENT = 4, 0.7


class Text:
    """A pipeline of random rows of two documents, of which some tokens do not count and others count less."""

    def __init__(self, place=0):
        self.place = place

    def next(self):
        rng = np.random.default_rng(self.place)
        self.place += 1
        tokens, targets = rng.integers(0, toy.LETTERS, (2, ROWS, toy.SEQ_LEN), np.int32)
        segments = np.ones_like(tokens) + (np.arange(toy.SEQ_LEN) >= 20).astype(np.int32)
        positions = np.arange(toy.SEQ_LEN, dtype=np.int32) - 20 * (segments - 1)
        weights = rng.choice([0, 0.5, 1], tokens.shape).astype(np.float32)
        return dict(tokens=tokens, targets=targets, segment_ids=segments, positions=positions, weights=weights)

    def position(self):
        return self.place

    def events(self):
        return []


def rollouts(objective, **more):
    return toy.rollouts(objective, size=64, group=8, epochs=2, unit=2, rows=ROWS, **more)


def language_loss(model, rows):
    """Returns the mean cross-entropy of the tokens, written out; no temperature, and all ids."""
    x_BTD = model(rows["tokens"], rows["segment_ids"], rows["positions"]).x_BTD
    logp_BTV = jax.nn.log_softmax(model.output(x_BTD).logits())
    own_BT = jnp.take_along_axis(logp_BTV, rows["targets"][..., None], -1)[..., 0]
    return -(own_BT * rows["weights"]).sum() / rows["weights"].sum()


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_the_gradient_is_that_of_both_losses(average):
    """Also in micro-batches, of which one holds all of the text."""
    objective = Policy(average=average, text=COEFFICIENT).sampling(0.7, toy.LONGEST, toy.END + 1)
    alone = Policy(average=average).sampling(0.7, toy.LONGEST, toy.END + 1)
    state = states.around(toy.model(), optax.sgd(0.1))
    batch, rows = rollouts(objective, text=Text()).next(state), Text().next()
    answers = {name: array[:-ROWS] for name, array in batch.items() if name != "text_weights"}
    wanted, policy = jax.jit(step.make_gradients(alone))(state, answers)
    mean = lambda params: language_loss(replaced(state.model, params), rows)
    value, of_text = jax.jit(jax.value_and_grad(mean))(trained(state.model))
    for accumulate in (1, 2):
        found, loss = jax.jit(step.make_gradients(objective, accumulate=accumulate))(state, batch)
        np.testing.assert_allclose(loss.weight, policy.weight, rtol=1e-6)
        np.testing.assert_allclose(
            loss.total / loss.weight, policy.total / policy.weight + COEFFICIENT * value, rtol=1e-5
        )
        np.testing.assert_allclose(loss.metrics["text_loss"] / loss.weight, value, rtol=1e-5)
        for name, gradient in found.items():
            # Float32 sums in another order; gradients are up to 0.3.
            both = wanted[name][...] + COEFFICIENT * of_text[name][...]
            np.testing.assert_allclose(gradient[...], both, rtol=1e-4, atol=2e-6, err_msg=name)
            assert np.abs(wanted[name][...]).max() > 1e-4 and np.abs(of_text[name][...]).max() > 1e-4


def test_each_batch_has_the_next_rows_of_text_also_after_a_stop():
    objective = Policy(text=COEFFICIENT).sampling(1.0, toy.LONGEST, toy.END + 1)
    state, source = states.around(toy.model(), optax.sgd(0.1)), rollouts(objective, text=Text())
    for number in range(3):
        place = json.loads(json.dumps(source.to_json()))
        batch = source.next(state)
        np.testing.assert_array_equal(batch["targets"][-ROWS:], Text(number).next()["targets"])
        assert not batch["weights"][-ROWS:].any() and not batch["text_weights"][:-ROWS].any()
        assert source.origins()[-ROWS:] == ["text"] * ROWS and len(source.origins()) == len(batch["tokens"])
        again = rollouts(objective, text=Text(place["text"]), place=place).next(state)
        for name, array in batch.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)
