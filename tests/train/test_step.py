"""Gradient accumulation, skipped updates and the loss curve of the training step are correct."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pretrain_decoder
from model import axes
from model.architectures import Decoder
from model.config import ModelConfig
from tests.train.torch_decoder import losses_in_pytorch
from train import guard, optimizer, state, step
from train.checkpoints.checkpoint import Checkpoints
from train.losses import Loss
from train.objectives.language import Language

CONFIG = ModelConfig(
    vocab_size=32, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, max_length=16, dtype="float32", tied=True
)
ROWS, LENGTH = 8, 16


def batch(seed=0):
    """Makes rows with very different numbers of weighted tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 32, (ROWS, LENGTH + 1), np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH)),
        "weights": (np.arange(LENGTH) < np.arange(1, ROWS + 1)[:, None] * 2).astype(np.float32),
    }


def start(rate=0.01, **settings):
    options = pretrain_decoder.get_config().optimizer
    options.update(settings)
    tx = optimizer.make_optimizer(options, lambda step: rate, CONFIG)
    return tx, state.create(lambda rngs: Decoder(CONFIG, rngs), tx, seed=0)


def run(steps=3, accumulate=1, mesh=None, **settings):
    """Returns the metrics of each step, and the final parameters."""
    with axes.use_mesh(mesh or axes.make_mesh({"data": 1}, jax.devices()[:1])) as mesh:
        tx, current = start(**settings)
        train_step = step.make_train_step(Language(), tx, accumulate=accumulate)
        put = lambda b: jax.device_put(b, axes.batch_sharding(mesh))
        seen = []
        for i in range(steps):
            current, metrics = train_step(current, put(batch(i)))
            seen.append(jax.device_get(metrics))
        return seen, jax.device_get(jax.tree.leaves(current.model))


@pytest.mark.parametrize("shape", [{"data": 1}, {"fsdp": 2}])
def test_accumulation_changes_nothing(shape):
    """One micro-batch equals four with uneven weights. SGD shows gradients, where Adam would show only their signs."""
    mesh = axes.make_mesh(shape, jax.devices()[: 2 if "fsdp" in shape else 1])
    whole, params = run(mesh=mesh, name="sgd", rate=0.5)
    parts, params_parts = run(mesh=mesh, name="sgd", rate=0.5, accumulate=4)
    for one, four in zip(whole, parts, strict=True):
        for name in ("loss", "grad_norm", "weight"):
            np.testing.assert_allclose(one[name], four[name], rtol=2e-6)
    for one, four in zip(params, params_parts, strict=True):
        np.testing.assert_allclose(one, four, atol=1e-6)


def test_an_optimizer_state_on_the_host_changes_nothing(tmp_path):
    """The state is on the host before the first step, after each step, and after it is restored from a checkpoint."""
    mesh = axes.make_mesh({"fsdp": 2}, jax.devices()[:2])
    seen, params = run(mesh=mesh)
    offloaded, params_offloaded = run(mesh=mesh, offload=True)
    assert [one["loss"] for one in seen] == [one["loss"] for one in offloaded]
    for one, other in zip(params, params_offloaded, strict=True):
        np.testing.assert_array_equal(one, other)
    kinds = lambda tree: {(a.ndim > 0, a.sharding.memory_kind) for a in jax.tree.leaves(tree)}
    with axes.use_mesh(mesh):
        tx, current = start(offload=True)
        device = current.step.sharding.memory_kind
        assert kinds(current.opt_state) == {(False, device), (True, "pinned_host")}
        assert kinds(current.model) == {(True, device)}
        current, _ = step.make_train_step(Language(), tx)(current, jax.device_put(batch(), axes.batch_sharding(mesh)))
        assert kinds(current.opt_state) == {(False, device), (True, "pinned_host")}
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, current, {})
        checkpoints.wait()
        like = state.abstract(lambda rngs: Decoder(CONFIG, rngs), tx)
        found, _ = checkpoints.restore(like)
        checkpoints.close()
    for one, other in zip(jax.tree.leaves(current), jax.tree.leaves(found), strict=True):
        assert one.sharding == other.sharding
        np.testing.assert_array_equal(jax.device_get(one), jax.device_get(other))


def test_clipping_bounds_the_update():
    """With SGD at rate 1, the update's norm is that of the clipped gradient; the metric is the norm before clipping."""
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        tx, current = start(name="sgd", beta1=0.0, rate=1.0, clip_norm=0.1, weight_decay=0.0)
        before = jax.device_get(jax.tree.leaves(current.model))
        current, metrics = step.make_train_step(Language(), tx)(current, batch())
        after = jax.device_get(jax.tree.leaves(current.model))
    moved = np.sqrt(sum(np.square(a - b).sum() for a, b in zip(after, before, strict=True)))
    assert metrics["grad_norm"] > 0.2
    assert moved == pytest.approx(0.1, rel=1e-4)


def test_skips_what_is_not_finite():
    """A bad batch changes neither parameters nor optimizer state and is counted; a good one resets the streak."""
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        tx, current = start()
        train_step = step.make_train_step(Language(), tx)
        current, _ = train_step(current, batch())
        before = jax.device_get(jax.tree.leaves((current.model, current.opt_state)))
        bad = batch() | {"weights": np.full((ROWS, LENGTH), np.nan, np.float32)}
        for count in (1, 2):
            current, metrics = train_step(current, bad)
            assert (metrics["skipped"], metrics["streak"], current.step) == (count, count, 1 + count)
        after = jax.device_get(jax.tree.leaves((current.model, current.opt_state)))
        for one, two in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, two)
        current, metrics = train_step(current, batch())
        assert (metrics["skipped"], metrics["streak"]) == (2, 0)


@pytest.mark.parametrize(
    "broken", [dict(rate=np.nan), dict(rate=np.inf), dict(rates=(("norm", 1e38), (".*", 1.0)), rate=1e3)], ids=str
)
@pytest.mark.parametrize("spike", [0.0, 10.0])
def test_an_update_that_is_not_finite_changes_nothing(broken, spike):
    """Loss and gradient are finite, but a learning rate makes the update infinite or NaN, for one parameter or all."""
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        tx, current = start(**broken)
        before = jax.device_get(jax.tree.leaves((current.model, current.opt_state)))
        current, metrics = step.make_train_step(Language(), tx, spike=spike)(current, batch())
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert guard.REASONS[int(metrics["left_out"])] == "the update is not finite"
    assert (metrics["skipped"], metrics["streak"], current.step) == (1, 1, 1)
    for one, two in zip(before, jax.tree.leaves((current.model, current.opt_state)), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(current.recent, guard.empty())


def test_gradients_of_bfloat16_parameters_are_summed_in_float32():
    """bfloat16 has 8 bits: if 63 ones are added to 256 one by one, they are lost. The sum is rounded once, to 320."""
    config = ModelConfig(**{**CONFIG.__dict__, "param_dtype": "bfloat16"})
    tx = optimizer.make_optimizer(pretrain_decoder.get_config().optimizer, lambda step: 0.01, config)
    current = state.create(lambda rngs: Decoder(config, rngs), tx, seed=0)

    def times_the_scales(model, batch, key):
        return Loss(model.norm.scale.sum() * batch["by"].sum().astype(jnp.bfloat16), batch["weights"].sum(), {})

    rows = {"by": np.float32([256] + [1] * 63), "weights": np.float32([1] + [0] * 63)}
    grads, _ = jax.jit(step.make_gradients(times_the_scales, accumulate=64))(current, rows)
    assert all(grads[name].dtype == jnp.bfloat16 for name in grads)
    np.testing.assert_array_equal(grads["norm/scale"][...].astype(jnp.float32), 320.0)


def test_the_gradient_norm_of_bfloat16_parameters_is_computed_in_float32():
    grads = {"a": jnp.ones(255, jnp.bfloat16), "b": jnp.full(3, 1 / 16, jnp.bfloat16)}
    assert float(optimizer.gradient_norm(grads)) == pytest.approx(np.sqrt(255 + 3 / 256), rel=1e-6)


def test_a_spike_changes_nothing():
    """Random labels give a loss spike after a window of lower losses."""
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        tx, current = start()
        train_step = step.make_train_step(Language(), tx, spike=10.0)
        recent = np.random.default_rng(0).normal(1.0, 0.01, (2, guard.WINDOW)).astype(np.float32)
        current = dataclasses.replace(current, recent=jnp.asarray(recent))
        before = jax.device_get(jax.tree.leaves((current.model, current.opt_state)))
        current, metrics = train_step(current, batch())
    assert guard.REASONS[int(metrics["left_out"])] == "loss spike" and metrics["loss"] > 3
    assert (metrics["skipped"], metrics["streak"], current.step) == (1, 1, 1)
    for one, two in zip(before, jax.tree.leaves((current.model, current.opt_state)), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(current.recent, recent)


def test_a_batch_without_weight_is_harmless():
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        tx, current = start(weight_decay=0.0)
        _, metrics = step.make_train_step(Language(), tx)(
            current, batch() | {"weights": np.zeros((ROWS, LENGTH), np.float32)}
        )
    assert metrics["grad_norm"] == 0 and metrics["skipped"] == 0


def test_dropout_differs_by_step_and_repeats_by_seed():
    config = ModelConfig(**{**CONFIG.__dict__, "dropout": 0.5})
    model = Decoder(config, nnx.Rngs(0))
    loss = jax.jit(lambda key: Language()(model, batch(), key).total)
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in (0, 1, 0)]
    first, second, again = (float(loss(key)) for key in keys)
    assert first == again != second


def test_pure_bfloat16():
    """Parameters, moments and updates are all bfloat16."""
    config = ModelConfig(**{**CONFIG.__dict__, "dtype": "bfloat16", "param_dtype": "bfloat16"})
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        tx = optimizer.make_optimizer(pretrain_decoder.get_config().optimizer, lambda step: 0.01, CONFIG)
        current = state.create(lambda rngs: Decoder(config, rngs), tx, seed=0)
        train_step = step.make_train_step(Language(), tx)
        losses = []
        for _ in range(20):
            current, metrics = train_step(current, batch())
            losses.append(float(metrics["loss"]))
    floats = [leaf.dtype for leaf in jax.tree.leaves((current.model, current.opt_state)) if leaf.ndim]
    assert set(floats) == {jnp.dtype("bfloat16")}
    assert losses[-1] < losses[0] - 0.3


def test_golden_curve():
    """The expected losses of float32 AdamW come from PyTorch, from the same weights and batches, and not from us."""
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        tx, current = start()
        model = jax.device_get(nnx.to_pure_dict(nnx.state(current.model)))
        train_step = step.make_train_step(Language(), tx)
        ours = []
        for i in range(12):
            current, metrics = train_step(current, batch(i % 3))
            ours.append(float(metrics["loss"]))
    theirs = losses_in_pytorch(CONFIG, model, [batch(i % 3) for i in range(12)], rate=0.01)
    # Rounding errors grow along the run; a wrong detail would cause 1e-3 within a few steps.
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert ours[-1] < ours[0] - 0.25
