"""With experts, the language objective adds router losses, reports loads, and updates the correction biases."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import pretrain_decoder
from model import architectures
from model.parts import Experts
from tests.model import tiny
from train import optimizer, state, step
from train.objectives.language import Language

CONFIG = dataclasses.replace(
    tiny.LLAMA,
    num_layers=4,
    mlp_pattern=("dense", "sparse"),
    experts=Experts(count=8, per_token=2, mlp_dim=16, shared_dim=16, correction=True),
)


def batch(rows=4):
    tokens, segments, positions = tiny.packed_rows(rows, 16)
    weights = (segments > 0).astype(np.float32)
    targets = np.roll(tokens, -1, axis=1)
    return dict(tokens=tokens, targets=targets, segment_ids=segments, positions=positions, weights=weights)


def loss_of(config, **coefficients):
    return jax.jit(lambda model, rows: Language(**coefficients)(model, rows, None))(tiny.drawn(config), batch())


def test_router_losses_are_added_as_means_over_tokens():
    plain, both = loss_of(CONFIG), loss_of(CONFIG, balance_loss=0.5, router_z_loss=0.25)
    router = tiny.drawn(CONFIG)(*(batch()[name] for name in ("tokens", "segment_ids", "positions"))).router
    tokens = batch()["weights"].sum()
    np.testing.assert_array_equal(router.tokens, [tokens, tokens])  # two sparse layers; padding is not counted
    fraction, probability = router.load_E / tokens, router.probs_E / tokens
    balance = 8 * (fraction * probability).sum()  # equation 4 of arXiv:2101.03961, for each layer
    z = (router.z_loss / tokens).sum()
    np.testing.assert_allclose(both.total, plain.total + (0.5 * balance + 0.25 * z) * plain.weight, rtol=1e-6)
    np.testing.assert_allclose(both.metrics["experts/balance_loss"] / both.weight, balance, rtol=1e-6)
    assert both.metrics["loss"] == plain.metrics["loss"]


def test_loads_of_all_experts_are_reported():
    loss = loss_of(CONFIG)
    load_LE = np.asarray(loss.metrics["experts/load"] / loss.weight)
    assert load_LE.shape == (2, 8) and load_LE.std() > 0.1
    np.testing.assert_allclose(load_LE.mean(1), 1, rtol=1e-6)
    assert loss.metrics["experts/dropped"] == 0
    full = loss_of(dataclasses.replace(CONFIG, experts=dataclasses.replace(CONFIG.experts, capacity=2)))
    kept = 1 - full.metrics["experts/dropped"] / full.weight
    assert 0.1 < kept <= 2 * 8 * 4 / (2 * batch()["weights"].sum())  # capacity / choices


@functools.cache
def run(accumulate=1, **settings):
    options = pretrain_decoder.get_config().optimizer
    options.update(settings)
    tx = optimizer.make_optimizer(options, lambda step: 0.01, CONFIG)
    old = state.create(lambda rngs: architectures.make(CONFIG, rngs), tx, seed=0)
    before = jax.device_get(old.model)
    new, metrics = step.make_train_step(Language(), tx, accumulate=accumulate)(old, batch())
    return before, jax.device_get(new.model), metrics


def corrections(model):
    return np.concatenate(
        [block.feed_forward.correction[...] for segment in model.stack.segments for block in segment[1:]]
    )


@pytest.mark.parametrize("settings", [dict(), dict(name="muon"), dict(clip_norm=1e-3, accumulate=2)], ids=str)
def test_the_correction_moves_against_the_load(settings):
    before, after, metrics = run(correction_rate=0.125, **settings)
    load_LE = np.asarray(metrics["experts/load"])
    expected = -0.125 * np.sign(load_LE - 1)
    close = np.abs(load_LE - 1) < 1e-5
    np.testing.assert_array_equal((corrections(after) - corrections(before))[~close], expected[~close])
    assert (expected[~close] > 0).any() and (expected[~close] < 0).any()


def test_nothing_else_knows_of_the_correction():
    """Token counts of experts neither enter the gradient norm nor change how the gradient is clipped."""
    (_, one, metrics), (_, other, _) = run(correction_rate=0.125), run(correction_rate=0.0)
    assert 0 < metrics["grad_norm"] < 5  # a load that is off by 3 tokens in 16 places would make it 12
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if a.shape != (2, 8):
            np.testing.assert_array_equal(a, b)
