"""Mixtures of experts equal transformers' blocks and a dense mixture."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import axes
from model.experts import dispatch
from model.experts.moe import MoE
from model.experts.router import RouterStats
from model.layers import activate
from model.parts import Experts
from tests.model import tiny

D, F, E = tiny.LLAMA.embed_dim, 16, 8
X = np.random.default_rng(0).normal(size=(8, 16, D)).astype(np.float32)
REAL = np.arange(16) < np.random.default_rng(1).integers(3, 17, (8, 1))


def drawn(experts, config=tiny.LLAMA, seed=0):
    """Returns a module with random parameters, as in the middle of training: correction and gates are not 0."""
    config = dataclasses.replace(config, experts=experts, mlp_pattern=("sparse",))
    return tiny.filled(jax.eval_shape(lambda: MoE(config, nnx.Rngs(0))), seed)


@jax.jit
def forward(moe, x, real=None):
    return moe(x, real)


# --- transformers' blocks ---

HF = dict(hidden_size=D, hidden_act="silu", num_experts_per_tok=2)
MANY = dict(HF, moe_intermediate_size=F)
DEEPSEEK = dict(MANY, n_routed_experts=E, routed_scaling_factor=2.5, n_shared_experts=2, num_experts_per_tok=3)
BLOCKS = {
    "mixtral": ("mixtral.MixtralSparseMoeBlock", dict(HF, intermediate_size=F, num_local_experts=E), Experts(E, 2, F)),
    "qwen2": (
        "qwen2_moe.Qwen2MoeSparseMoeBlock",
        dict(MANY, num_experts=E, shared_expert_intermediate_size=24, norm_topk_prob=False),
        Experts(E, 2, F, shared_dim=24, shared_gate=True, normalize=False),
    ),
    "qwen2-normalized": (
        "qwen2_moe.Qwen2MoeSparseMoeBlock",
        dict(MANY, num_experts=E, shared_expert_intermediate_size=24, norm_topk_prob=True),
        Experts(E, 2, F, shared_dim=24, shared_gate=True),
    ),
    "qwen3": (
        "qwen3_moe.Qwen3MoeSparseMoeBlock",
        dict(MANY, num_experts=E, norm_topk_prob=True),
        Experts(E, 2, F),
    ),
    "deepseek2": (
        "deepseek_v2.DeepseekV2Moe",
        dict(DEEPSEEK, num_experts=E, topk_method="greedy"),
        Experts(E, 3, F, shared_dim=2 * F, normalize=False, scale=2.5),
    ),
    "deepseek2-groups": (
        "deepseek_v2.DeepseekV2Moe",
        dict(DEEPSEEK, num_experts=E, topk_method="group_limited_greedy", n_group=4, topk_group=2),
        Experts(E, 3, F, shared_dim=2 * F, normalize=False, scale=2.5, groups=4, groups_per_token=2),
    ),
    "deepseek3": (
        "deepseek_v3.DeepseekV3MoE",
        dict(DEEPSEEK, n_group=4, topk_group=2, norm_topk_prob=True),
        Experts(
            E, 3, F, shared_dim=2 * F, score="sigmoid", scale=2.5, groups=4, groups_per_token=2, group_score="top2",
            correction=True,
        ),
    ),
    "switch": (
        "switch_transformers.SwitchTransformersSparseMLP",
        dict(d_model=D, d_ff=F, num_experts=E, expert_capacity=2, dropout_rate=0.0, dense_act_fn="relu"),
        Experts(E, 1, F, normalize=False, capacity=2),
    ),
}  # fmt: skip
SWITCH = dataclasses.replace(tiny.LLAMA, gated=False, activation="relu")


def transformers_block(name):
    """Returns (the block with random parameters, its Experts, our module with the same parameters)."""
    torch = pytest.importorskip("torch")
    path, fields, experts = BLOCKS[name]
    family, class_name = path.split(".")
    package = importlib.import_module(f"transformers.models.{family}")
    prefix = class_name.split("Moe")[0].split("MoE")[0].split("Sparse")[0]
    config = getattr(package, prefix + ("MoeConfig" if prefix.startswith("Qwen") else "Config"))(**fields)
    config._experts_implementation = "eager"
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    block = getattr(module, class_name)(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in [*block.parameters(), *block.buffers()]:
            tensor.normal_(0, 0.3)
    theirs = {key: tensor.numpy() for key, tensor in block.state_dict().items()}
    config = dataclasses.replace(SWITCH if name == "switch" else tiny.LLAMA, experts=experts, mlp_pattern=("sparse",))
    ours = MoE(config, nnx.Rngs(0))
    put = lambda leaf, value: leaf.set_value(jnp.array(value, leaf.dtype))
    if name == "switch":
        put(ours.router, theirs["router.classifier.weight"].T)
        of = lambda part: np.stack([theirs[f"experts.expert_{e}.{part}.weight"].T for e in range(E)])
        put(ours.experts_up, of("wi"))
        put(ours.experts_down, of("wo"))
        return block, ours
    put(ours.router, theirs["gate.weight"].T)
    gate_up = theirs["experts.gate_up_proj"].swapaxes(1, 2)
    put(ours.experts_gate, gate_up[..., :F])
    put(ours.experts_up, gate_up[..., F:])
    put(ours.experts_down, theirs["experts.down_proj"].swapaxes(1, 2))
    if experts.correction:
        put(ours.correction, theirs["gate.e_score_correction_bias"])
    if experts.shared_dim:
        shared = "shared_experts" if "deepseek" in name else "shared_expert"
        for part in ("gate", "up", "down"):
            put(getattr(ours.shared, part), theirs[f"{shared}.{part}_proj.weight"].T)
    if experts.shared_gate:
        put(ours.shared_gate, theirs["shared_expert_gate.weight"].T)
    return block, ours


@pytest.mark.parametrize("name", BLOCKS)
def test_equals_transformers(name):
    torch = pytest.importorskip("torch")
    block, ours = transformers_block(name)
    with torch.no_grad():
        expected = block(torch.from_numpy(X.copy())).numpy()
    got, stats = forward(ours, X)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    assert stats.tokens == X.shape[0] * X.shape[1]
    assert stats.load_E.sum() == stats.tokens * ours.experts.per_token
    assert stats.dropped == (0 if name != "switch" else (expected == 0).all(-1).sum())
    assert (stats.dropped > 10) == (name == "switch")


def test_losses_equal_transformers():
    """Mixtral's loss covers two layers and padding; Switch's loss averages the losses of rows."""
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral import modeling_mixtral
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    layers = [transformers_block("mixtral")[1], drawn(BLOCKS["mixtral"][2])]
    logits = [torch.from_numpy(np.array(X @ np.asarray(layer.router[...]))) for layer in layers]
    flat = tuple(layer.reshape(-1, E) for layer in logits)
    for real in (None, REAL):
        mask = None if real is None else torch.from_numpy(real.astype(np.int64))
        expected = modeling_mixtral.load_balancing_loss_func(flat, E, 2, mask)
        stats = jax.tree.map(lambda *sums: sum(sums), *(forward(layer, X, real)[1] for layer in layers))
        np.testing.assert_allclose(stats.balance_loss(), expected, rtol=1e-5)
    top1 = dataclasses.replace(layers[1].experts, per_token=1, normalize=False)
    layers[1].experts = top1
    rows = [forward(layers[1], row[None])[1] for row in X]
    expected = switch.load_balancing_loss_func(logits[1].softmax(-1), logits[1].argmax(-1))
    np.testing.assert_allclose(np.mean([row.balance_loss() for row in rows]), expected, rtol=1e-5)
    np.testing.assert_allclose(forward(layers[1], X)[1].mean_z_loss(), switch.router_z_loss_func(logits[1]), rtol=1e-5)


# --- properties ---

VARIANTS = {
    "mixtral": Experts(E, 2, F),
    "deepseek3": Experts(**{**vars(BLOCKS["deepseek3"][2]), "shared_gate": True}),
    "capacity": Experts(E, 2, F, shared_dim=24, capacity_factor=1.0),
}


def run(moe, x, real=None):
    """Returns (gradients of the module and of x, (y, stats))."""

    def loss(moe, x):
        y, stats = moe(x, real)
        return jnp.square(y).sum() + 50 * stats.balance_loss() + stats.mean_z_loss(), (y, stats)

    return jax.grad(loss, (0, 1), has_aux=True)(moe, x)


def assert_close(got, expected, atol=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        scale = max(1, np.abs(b).max())
        np.testing.assert_allclose(a / scale, b / scale, atol=atol)


class Dense(MoE):
    """Runs every expert on every token, and masks by the choice."""

    def _local(self, x_BTD, logits_BTE, real_BT, correction_E, gate, up, down):
        def every_expert(experts, x_BTD, routing, apply):
            h = activate(jnp.einsum("BTD,EDF->BTEF", x_BTD, gate), "silu") * jnp.einsum("BTD,EDF->BTEF", x_BTD, up)
            weights = jnp.einsum("NKE,NK->NE", routing.chosen_NKE.astype(jnp.float32), routing.weights_NK)
            return jnp.einsum("BTEF,EFD,BTE->BTD", h, down, weights.reshape(logits_BTE.shape)), 0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "dropless", every_expert)
            return super()._local(x_BTD, logits_BTE, real_BT, correction_E, gate, up, down)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", ["mixtral", "deepseek3"])
def test_equals_a_dense_mixture(name, platform, monkeypatch):
    """Outputs and gradients are equal with padding, by blocks and by ragged matmuls."""
    moe, dense = drawn(VARIANTS[name]), drawn(VARIANTS[name])
    dense.__class__ = Dense
    expected = jax.jit(run)(dense, X, REAL)
    monkeypatch.setattr(axes, "platform", lambda: platform)
    assert_close(jax.jit(run)(moe, X, REAL), expected)


@pytest.mark.parametrize("experts", [Experts(E, 2, F), Experts(E, 1, F, normalize=False), Experts(4, 4, F)], ids="214")
@pytest.mark.parametrize("real", [None, REAL], ids=["real", "padded"])
def test_capacity_for_all_is_dropless(experts, real):
    enough = dataclasses.replace(experts, capacity=X.shape[1])
    got = jax.jit(run)(drawn(enough), X, real)
    assert got[1][1].dropped == 0
    assert_close(got, jax.jit(run)(drawn(experts), X, real))


def test_capacity_serves_first_choices_first():
    """With equal tokens, the first ones get places with their first expert, and the same ones with their second."""
    y, stats = forward(drawn(Experts(E, 2, F, capacity_factor=1.0)), np.broadcast_to(X[:1, :1], X.shape))
    full, _ = forward(drawn(Experts(E, 2, F)), X[:1, :1])
    places = 16 * 2 // E
    np.testing.assert_allclose(y[:, :places], np.broadcast_to(full, (8, places, D)), atol=1e-5)
    assert not np.asarray(y[:, places:]).any() and stats.dropped == 8 * 2 * (16 - places)


def test_padding_changes_nothing():
    """Padding affects neither tokens, loads nor losses, even if places are few."""
    for experts in VARIANTS.values():
        moe = drawn(experts)
        other = np.where(REAL[..., None], X, 7.0).astype(np.float32)
        (y, stats), (y_other, stats_other) = forward(moe, X, REAL), forward(moe, other, REAL)
        assert_close((y[REAL], stats), (y_other[REAL], stats_other), 1e-6)
        assert stats.tokens == REAL.sum() and stats.load_E.sum() == REAL.sum() * experts.per_token


def test_order_of_tokens_does_not_matter():
    moe = drawn(VARIANTS["deepseek3"])
    order = np.random.default_rng(2).permutation(128)
    shuffled = X.reshape(128, D)[order].reshape(X.shape)
    y, stats = forward(moe, X)
    y_shuffled, stats_shuffled = forward(moe, shuffled)
    assert_close((y.reshape(128, D)[order], stats), (y_shuffled.reshape(128, D), stats_shuffled), 1e-6)


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_any_number_of_tokens(tokens):
    """Tokens may be as few as in decoding, and all may choose the same expert."""
    moe = drawn(Experts(E, 1, F, normalize=False))
    x = np.broadcast_to(X[:1, :1], (1, tokens, D))
    expected = np.broadcast_to(forward(moe, X)[0][:1, :1], x.shape)
    np.testing.assert_allclose(forward(moe, x)[0], expected, atol=1e-5)


def test_correction_gets_the_excess_load():
    """The gradient ignores the loss and its scale, adds up over micro-batches, and its sign balances loads."""
    experts = Experts(E, 2, F, score="sigmoid", correction=True)
    moe = drawn(experts)
    gradient = jax.jit(
        lambda moe, x, real, scale: jax.grad(lambda moe: scale * moe(x, real)[0].sum())(moe).correction[...]
    )
    load = forward(moe, X, REAL)[1].load_E
    for scale in (1.0, -1e-3):
        np.testing.assert_allclose(gradient(moe, X, REAL, scale), load - load.mean(), rtol=1e-6)
    halves = gradient(moe, X[:4], REAL[:4], 1.0) + gradient(moe, X[4:], REAL[4:], 1.0)
    np.testing.assert_allclose(halves, load - load.mean(), rtol=1e-6)
    worst = lambda load: float(load.max() / load.mean())
    before = worst(load)
    for _ in range(200):
        moe.correction.set_value(moe.correction[...] - 0.01 * jnp.sign(gradient(moe, X, REAL, 1.0)))
    assert worst(forward(moe, X, REAL)[1].load_E) < 1.2 < before


def test_router_is_float32():
    """This holds in a bfloat16 model too: the choice equals that of the float32 product of the bfloat16 tokens."""
    moe = drawn(Experts(E, 2, F))
    x = jnp.asarray(X, jnp.bfloat16)
    y, stats = forward(moe, x)
    assert y.dtype == jnp.bfloat16 and {leaf.dtype for leaf in stats} == {jnp.dtype("float32")}
    assert_close(stats, forward(moe, x.astype(jnp.float32))[1], 1e-6)


def test_stats_have_a_dim_of_layers():
    layers = [forward(drawn(VARIANTS["mixtral"], seed=seed), X)[1] for seed in (0, 1)]
    stacked = RouterStats(*map(jnp.stack, zip(*layers, strict=True)))
    np.testing.assert_allclose(stacked.balance_loss(), [layer.balance_loss() for layer in layers], rtol=1e-6)
    np.testing.assert_allclose(stacked.mean_z_loss(), [layer.mean_z_loss() for layer in layers], rtol=1e-6)
