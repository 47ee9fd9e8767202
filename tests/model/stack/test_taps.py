"""Taps of a stack: any stack gives the same results, nothing else changes, and gradients flow.

The tests of each family (tests/model/interop/tables) compare states and probabilities with transformers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from model import architectures, axes
from model.architectures import Source
from model.attention import grouped
from tests.model import tiny
from tests.model.interop import hub
from tests.model.interop.tables.test_families import batch, ours, padded

ROWS = tiny.packed_rows(4, 16)
DEEP = dataclasses.replace(tiny.LLAMA, num_layers=6, attention_pattern=("local", "global"), window=5)
HIDDEN, LAYERS = (0, 3, -1, -3), (3, -2)


@jax.jit
def tapped(model, *rows):
    return model.tapped(*rows, hidden=HIDDEN, attention=LAYERS)


def test_a_row_is_a_distribution_over_what_a_query_sees():
    """Rows are packed documents with a causal mask; layer 4 has a window of 5, and layer 3 has none."""
    _, segments, positions = ROWS
    probabilities = np.asarray(tapped(tiny.drawn(DEEP), *ROWS)[1].attention)
    assert probabilities.dtype == np.float32 and probabilities.shape == (2, 4, 16, 16, 16)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    distance = positions[:, :, None] - positions[:, None]
    seen = (segments[:, :, None] == segments[:, None]) & (distance >= 0)
    for found, visible in zip(probabilities, (seen, seen & (distance < 5)), strict=True):
        # Padding, whose positions are all 0, attends to itself.
        assert np.all((found > 0) == visible[:, None])


def test_layers_count_from_both_ends_and_in_any_order():
    found, one_by_one = tapped(tiny.drawn(DEEP), *ROWS)[1], {}
    run = jax.jit(lambda model, *rows: model.tapped(*rows, hidden=range(7), attention=range(6))[1])
    one_by_one = run(tiny.drawn(DEEP), *ROWS)
    np.testing.assert_allclose(found.hidden, one_by_one.hidden[np.array([0, 3, 6, 4])], atol=1e-5)
    np.testing.assert_allclose(found.attention, one_by_one.attention[np.array([3, 4])], atol=1e-5)


STACKS = {
    "remat": dict(remat="full", scan_unroll=1),
    "parted": dict(cuts=(2, 3)),
    "no remat": dict(remat="none", scan_unroll=2),
    "shared": dict(share_groups=2, attention_pattern=("global",)),
    "dropout": dict(dropout=0.2),
    "latent": dict(dataclasses.asdict(tiny.LATENT), num_layers=4, latent=tiny.LATENT.latent, rope=tiny.LATENT.rope),
}


@pytest.mark.parametrize("name", STACKS)
def test_what_a_model_returns_stays(name):
    """The gradient is equal too, whichever layers run outside of a scan, and so is dropout."""
    model = tiny.drawn(dataclasses.replace(DEEP, **STACKS[name]))
    key = jax.random.key(1) if name == "dropout" else None
    plain = lambda model: jnp.sin(3 * model(*ROWS, key=key).x_BTD).sum()
    other = lambda model: jnp.sin(3 * model.tapped(*ROWS, key=key, hidden=(1, 3), attention=(2,))[0].x_BTD).sum()
    expected, found = (jax.jit(jax.value_and_grad(run))(model) for run in (plain, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), found, expected)


def test_routers_of_tapped_layers_are_counted_in_their_order():
    config = dataclasses.replace(DEEP, mlp_pattern=("dense", "sparse"), experts=tiny.SWITCH.experts)
    model = tiny.drawn(config)
    expected = jax.jit(lambda model: model(*ROWS).router)(model)
    found = jax.jit(lambda model: model.tapped(*ROWS, hidden=(2,), attention=(3,))[0].router)(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 4}])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_every_mesh_equals_one_device(name, shape):
    config = {"llama": DEEP, "t5": tiny.SWITCH}[name]
    source = Source(*tiny.packed_rows(4, 24, seed=1))

    def run(model, rows, source):
        if name == "llama":
            return model.tapped(*rows, hidden=HIDDEN, attention=LAYERS)[1]
        everything = dict(hidden=(1,), attention=(0,), cross=(1,), encoder_hidden=(1, 2), encoder_attention=(1,))
        return model.tapped(*rows, source=source, **everything)[1]

    expected = jax.device_get(jax.jit(run)(tiny.drawn(config), ROWS, source))
    with axes.use_mesh(axes.make_mesh(shape)):
        place = lambda tree: jax.tree.map(lambda a: axes.place(jnp.asarray(a), "batch", "length"), tree)
        found = jax.device_get(jax.jit(run)(tiny.drawn(config), place(ROWS), place(source)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), found, expected)


def test_gradients_equal_transformers():
    """The loss uses a hidden state and attention probabilities, as in distillation, both from before the last layer."""
    tokens, real, positions = padded("right", (20, 20, 20))
    rng = np.random.default_rng(5)
    of_state, of_attention = rng.normal(size=(3, 20, 32)), rng.normal(size=(3, 4, 20, 20))
    theirs = hub.reference("llama")[0]
    inside = theirs(torch.tensor(tokens), output_hidden_states=True, output_attentions=True)
    weighted = lambda array, weights: (array * torch.tensor(weights, dtype=torch.float32)).sum()
    theirs.zero_grad()
    (weighted(inside.hidden_states[2], of_state) + weighted(inside.attentions[1], of_attention)).backward()

    def loss(model):
        found = model.tapped(*batch(tokens, real, positions), hidden=(2,), attention=(1,))[1]
        return (found.hidden[0] * of_state).sum() + (found.attention[0] * of_attention).sum()

    grads = jax.jit(jax.grad(loss))(ours("llama"))
    block = grads.stack.segments[0][0]
    layer = theirs.model.layers[1]
    pairs = [
        (grads.inputs.tokens.table[...], theirs.model.embed_tokens.weight.grad),
        (block.attention.query[1].reshape(32, 32).T, layer.self_attn.q_proj.weight.grad),
        (block.feed_forward.up[1].T, layer.mlp.up_proj.weight.grad),
    ]
    for found, expected in pairs:
        assert expected.abs().max() > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert not np.any(block.feed_forward.up[2]), "nothing that was requested depends on the last layer"


def test_without_a_request_nothing_is_different(monkeypatch):
    """No probabilities are computed, and the program equals that of a call, with gradients, remat and scans."""
    monkeypatch.setattr(grouped, "probabilities", None)
    model = jax.eval_shape(lambda: architectures.make(DEEP, nnx.Rngs(0)))
    text = lambda run: jax.jit(jax.grad(lambda model: run(model).x_BTD.sum())).lower(model).as_text()
    assert text(lambda model: model(*ROWS)) == text(lambda model: model.tapped(*ROWS)[0])


def test_what_cannot_be_tapped_is_refused():
    model = jax.eval_shape(lambda: architectures.make(DEEP, nnx.Rngs(0)))
    run = lambda **asked: jax.eval_shape(lambda model: model.tapped(*ROWS, **asked), model)
    with pytest.raises(ValueError, match="hidden has 7, but for 6 layers it must lie in -7 to 6"):
        run(hidden=(7,))
    with pytest.raises(ValueError, match="attention has -7, but for 6 layers it must lie in -6 to 5"):
        run(attention=(-7,))
    with pytest.raises(ValueError, match="cached decoding"):
        run(hidden=(0,), cache=object())
    with pytest.raises(ValueError, match="states of the encoder need a source"):
        pair = jax.eval_shape(lambda: architectures.make(tiny.SWITCH, nnx.Rngs(0)))
        pair.tapped(*ROWS, memory=object(), encoder_hidden=(1,))
    mesh = axes.make_mesh({"stage": 2, "data": 4})
    with axes.use_mesh(mesh), pytest.raises(ValueError, match="split over the mesh axis stage can't be tapped"):
        four = lambda: architectures.make(dataclasses.replace(DEEP, num_layers=4), nnx.Rngs(0))
        jax.eval_shape(lambda rows: four().tapped(*rows, hidden=(0,)), tiny.packed_rows(8, 16))
