"""Schedules equal their definitions; AdamW and rates by pattern equal PyTorch's; every optimizer decays and learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from ml_collections import ConfigDict

from configs import pretrain_decoder
from model import patterns, weights
from model.adapt.tuning import Tuning
from model.architectures import Decoder
from model.config import ModelConfig
from model.parts import Latent
from train import optimizer, state, step
from train.losses import Loss

TINY = dict(vocab_size=32, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, max_length=16, dtype="float32")


def settings(**changes) -> ConfigDict:
    config = pretrain_decoder.get_config().optimizer
    config.update(changes)
    return config


def test_cosine():
    rate = optimizer.schedule("cosine", 2.0, steps=110, warmup=10, final=0.1)
    assert [float(rate(s)) for s in (0, 4, 9)] == pytest.approx([2 / 11, 10 / 11, 20 / 11])
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx((2.0 + 0.2) / 2)
    assert float(rate(110)) == pytest.approx(0.2)


def test_warmup_stable_decay():
    rate = optimizer.schedule("wsd", 1.0, steps=100, warmup=10, final=0.0, decay=0.2)
    assert {float(rate(s)) for s in range(10, 81)} == {1.0}
    assert float(rate(90)) == pytest.approx(0.5)
    assert float(rate(100)) == pytest.approx(0.0)


def test_constant_without_warmup():
    rate = optimizer.schedule("constant", 0.5, steps=10, warmup=0)
    assert {float(rate(s)) for s in range(10)} == {0.5}


@pytest.mark.parametrize(
    "name, warmup, words", [("cosin", 1, "choose from cosine"), ("cosine", 10, "warmup_steps is 10")]
)
def test_schedule_refuses(name, warmup, words):
    with pytest.raises(ValueError, match=words):
        optimizer.schedule(name, 1.0, steps=10, warmup=warmup)


def test_adamw_equals_pytorch():
    """Ten clipped steps use the same gradients; mistakes in bias correction, epsilon or decoupled decay would show."""
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(5, 3)), rng.normal(size=(10, 5, 3))
    ours = optimizer.make_optimizer(
        settings(decay=((".*", True),), clip_norm=2.0), lambda step: 0.01, ModelConfig(**TINY)
    )
    params = {"w": {"value": jnp.asarray(start, jnp.float32)}}
    state = ours.init(params)
    theirs = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for grad in grads:
        updates, state = ours.update({"w": {"value": jnp.asarray(grad, jnp.float32)}}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([theirs], 2.0)
        adamw.step()
    np.testing.assert_allclose(params["w"]["value"], theirs.detach(), rtol=1e-5)


def test_rates_by_pattern_equal_groups_in_pytorch():
    """With layer-wise rates, each layer of a stacked array acts like its own parameter group, for weight decay too."""
    query, table, scale = "stack/segments/0/0/attention/query", "inputs/tokens/table", "norm/scale"
    rates = (("layer/0/", 0.25), ("layer/1/", 0.5), ("layer/.*/-1/", 0.8), ("norm", 0.0), (".*", 0.1))
    factors = {query: (0.25, 0.5, 0.8), table: (0.1,), scale: (0.0,)}
    rng = np.random.default_rng(0)
    start = {query: rng.normal(size=(3, 4, 5)), table: rng.normal(size=(6, 4)), scale: rng.normal(size=4)}
    model = ModelConfig(**TINY | dict(num_layers=3))
    ours = optimizer.make_optimizer(settings(rates=rates, clip_norm=2.0), lambda step: 0.01 / (step + 1), model)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
    state, update = ours.init(params), jax.jit(ours.update)
    parts = {name: value if name == query else value[None] for name, value in start.items()}
    theirs = {name: [torch.nn.Parameter(torch.tensor(part)) for part in value] for name, value in parts.items()}
    decay = {query: 0.1, table: 0.1, scale: 0.0}
    groups = [
        dict(params=[part], lr=factor, weight_decay=decay[name])
        for name in theirs
        for part, factor in zip(theirs[name], factors[name], strict=True)
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 0.01 / (step + 1))
    every = [part for name in theirs for part in theirs[name]]
    for _ in range(5):
        grads = {name: rng.normal(size=value.shape) for name, value in start.items()}
        updates, state = update({n: jnp.asarray(g, jnp.float32) for n, g in grads.items()}, state, params)
        params = optax.apply_updates(params, updates)
        for name in theirs:
            for part, grad in zip(theirs[name], grads[name] if name == query else grads[name][None], strict=True):
                part.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_(every, 2.0)
        adamw.step()
        schedule.step()
    for name in theirs:
        expected = torch.stack(theirs[name]).detach().numpy().reshape(start[name].shape)
        np.testing.assert_allclose(params[name] - start[name], expected - start[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(params[scale], start[scale].astype(np.float32))


def test_norms_and_biases_do_not_decay():
    config = ModelConfig(
        **TINY, qkv_bias=True, out_bias=True, mlp_bias=True, norm="layernorm", position="learned", gated=False
    )
    model = jax.jit(lambda: Decoder(config, nnx.Rngs(0)))()
    flat = patterns.by_array(config, weights.by_name(model), settings().decay, "")
    assert flat["stack/segments/0/0/attention/query"] and flat["inputs/tokens/table"]
    assert not any(value for name, value in flat.items() if "norm" in name or "bias" in name)
    assert len(flat) == len(jax.tree.leaves(model))
    # The list also has its effect: with zero gradients, decayed parameters shrink and others stay.
    tx = optimizer.make_optimizer(settings(), lambda step: 0.1, config)
    updates, _ = jax.jit(lambda model: tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model))(model)
    moved = {weights.name(p): bool(jnp.any(u != 0)) for p, u in jax.tree.leaves_with_path(updates)}
    zero = {weights.name(p) for p, v in jax.tree.leaves_with_path(model) if not jnp.any(v)}
    assert {name for name, yes in moved.items() if yes} == {name for name, yes in flat.items() if yes} - zero


DECAY = (("norm|bias", False), ("attention/value", False), (".*", True))
RATES = (("layer/0/", 0.5), ("feed_forward/up", 0.0), (".*", 1.0))


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_with_zero_gradients_an_optimizer_only_decays(name):
    """Each decayed parameter loses learning rate x its factor x weight decay x parameter.

    All others, and frozen ones, stay bit-identical. The learning rate follows its schedule at every step.
    """
    config = ModelConfig(**TINY, qkv_bias=True, mlp_bias=True, norm="layernorm", cuts=(1,))
    rate = optimizer.schedule("cosine", 0.1, steps=6, warmup=2)
    tx = optimizer.make_optimizer(settings(name=name, weight_decay=0.3, decay=DECAY, rates=RATES), rate, config)
    model = jax.jit(lambda: Decoder(config, nnx.Rngs(0)))()
    draw = iter(jax.random.split(jax.random.key(1), 100))
    # Also biases, whose initial value is 0.
    model = jax.tree.map(lambda a: 1 + jax.random.uniform(next(draw), a.shape), model)
    model = Tuning(train_only=(("inputs|layer/1/.*/key", False), (".*", True))).apply(model, jax.random.key(0))
    trains, factors = weights.trained(model), patterns.by_layer(config, weights.by_name(model), RATES, "")
    decays = patterns.by_array(config, weights.by_name(model), DECAY, "")
    nothing = lambda model, batch, key: Loss(jnp.zeros(()), batch["weights"].sum(), {"loss": jnp.zeros(())})
    train_step = step.make_train_step(nothing, tx, accumulate=2)
    before = jax.device_get(weights.by_name(model))
    current = state.around(model, tx)
    assert {False, True} == {path in trains for path in before} == {decays[path] for path in trains}
    for number in range(4):
        current, metrics = train_step(current, {"weights": jnp.ones((4, 1))})
        after = jax.device_get(weights.by_name(current.model))
        assert metrics["left_out"] == 0
        for path, old in before.items():
            lost = float(rate(number)) * 0.3 * factors[path][0] * old.astype(float)
            if path in trains and decays[path] and factors[path][0]:
                np.testing.assert_allclose(old.astype(float) - after[path], lost, atol=4e-7, err_msg=path)
            else:
                np.testing.assert_array_equal(after[path], old, err_msg=path)
        before = after


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_what_an_optimizer_does_not_read_is_listed(name):
    """UNREAD lists, for each optimizer, the config fields that change no update."""
    model = Decoder(ModelConfig(**TINY), nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    draw = np.random.default_rng(0).normal
    grads = [jax.tree.map(lambda p: jnp.asarray(draw(size=p.shape), p.dtype), params) for _ in range(2)]

    def updates(**changes):
        tx = optimizer.make_optimizer(settings(name=name, **changes), lambda step: 1e-2, model.config)
        found, opt = None, tx.init(params)
        for g in grads:
            found, opt = tx.update(g, opt, params)
        return jax.tree.leaves(found)

    values = dict(beta1=0.5, beta2=0.5, epsilon=0.1, weight_decay=0.5)
    base = updates()
    same = lambda field: all(
        np.array_equal(*pair) for pair in zip(base, updates(**{field: values[field]}), strict=True)
    )
    assert tuple(filter(same, values)) == optimizer.UNREAD.get(name, ())


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_learns(name):
    """Twenty steps on one batch lower the loss."""
    model = Decoder(ModelConfig(**TINY), nnx.Rngs(0))
    tokens = jnp.arange(32).reshape(2, 16)
    rate = {"sgd": 0.5, "lion": 3e-3, "muon": 0.02, "adafactor": 0.5}.get(name, 0.01)
    tx = optimizer.make_optimizer(settings(name=name, clip_norm=0.0), lambda step: rate, ModelConfig(**TINY))

    def loss(model):
        scores = model.logits(tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:]).mean()

    @jax.jit
    def step(model, state):
        value, grads = jax.value_and_grad(loss)(model)
        updates, state = tx.update(grads, state, model)
        return optax.apply_updates(model, updates), state, value

    state, values = tx.init(model), []
    for _ in range(20):
        model, state, value = step(model, state)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("latent", [None, Latent(kv_rank=8, content_dim=4, rope_dim=2, value_dim=4, query_rank=8)])
def test_muon_takes_the_matrices(latent):
    """Muon's momentum covers every hidden matrix and nothing else."""
    fields = TINY | dict(num_kv_heads=0, latent=latent) if latent else TINY
    model = Decoder(ModelConfig(**fields), nnx.Rngs(0))
    tx = optimizer.make_optimizer(settings(name="muon"), lambda step: 0.01, model.config)
    state = tx.init(model)
    paths = [path for path, _ in jax.tree.leaves_with_path(state) if "'muon'" in jax.tree_util.keystr(path)]
    muon = {"/".join(name.split("/")[-2:]) for name in map(weights.name, paths) if "stack/" in name}
    names = ("query_down", "query_up", "latent_down", "key_up", "value_up") if latent else ("query", "key", "value")
    matrices = {"attention/out", *(f"attention/{name}" for name in names)}
    matrices |= {"feed_forward/gate", "feed_forward/up", "feed_forward/down"}
    assert muon == matrices


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="choose from adamw"):
        optimizer.make_optimizer(settings(name="adan"), lambda step: 0.1, ModelConfig(**TINY))
