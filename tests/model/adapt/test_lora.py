"""LoRA changes nothing at initialization, follows the paper's formula after training, and merges exactly."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.adapt.lora import Lora, LowRank, _merged, adapters, merged, seeded
from model.weights import Frozen, frozen, replaced, trained, variables
from tests.model import tiny

ROWS = tiny.packed_rows(2, 16)
KINDS = {"llama": tiny.LLAMA, "latent": tiny.LATENT, "switch": tiny.SWITCH}


def inserted(name, **fields):
    """Returns (model, the same model with a new adapter)."""
    model = tiny.drawn(KINDS[name])
    return model, jax.jit(Lora(rank=3, alpha=6.0, **fields).insert)(frozen(model), jax.random.key(1))


def shaken(model, seed=0):
    """Draws every trainable parameter, including B."""
    rng = np.random.default_rng(seed)
    return replaced(
        model, {name: p.replace(p[...] + 0.1 * rng.standard_normal(p.shape)) for name, p in trained(model).items()}
    )


def logits(name, model):
    rows = {"source": tiny.packed_rows(2, 24, 2)} if name == "switch" else {}
    return np.asarray(jax.jit(lambda model: model.logits(*ROWS, **rows))(model))


@pytest.mark.parametrize("name", KINDS)
def test_new_adapters_change_nothing_and_merged_ones_say_the_same(name):
    base, model = inserted(name, rank_stabilized=True)
    before = logits(name, base)
    np.testing.assert_allclose(logits(name, model), before, atol=1e-5)
    moved = shaken(model)
    apart, together = logits(name, moved), logits(name, merged(moved))
    assert np.abs(apart - before).max() > 0.1
    np.testing.assert_allclose(apart, together, atol=3e-5)  # sums in another order


@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1 / 4), (jnp.bfloat16, 1 + 1 / 4)])
def test_merging_takes_the_place_of_the_base(dtype, limit):
    """Merging 12 matrices needs extra memory for only one of them in float32. (On a CPU, bfloat16 is copied.)"""
    base = jax.ShapeDtypeStruct((12, 1024, 4096), dtype)
    factor = lambda shape, *names: nnx.Param(
        jax.ShapeDtypeStruct(shape, jnp.float32), out_sharding=names, eager_sharding=False
    )
    a, b = factor((12, 1024, 8), "layers", "embed", "rank"), factor((12, 8, 4096), "layers", "rank", "mlp")
    found = _merged.lower(base, LowRank(None, a, b, 2.0, 0.0, (0,), False)).compile().memory_analysis()
    assert found.alias_size_in_bytes == found.output_size_in_bytes == base.size * base.dtype.itemsize
    assert found.temp_size_in_bytes < limit * base.size * base.dtype.itemsize

    model = jax.tree.map(jnp.copy, inserted("llama")[1])
    bases = [w.base[...] for w in adapters(model).values()]
    merged(model)
    assert all(base.is_deleted() for base in bases)


def test_the_formula():
    """Attention's query is y = x W + scale (x A) B, computed by numpy in float64; A is drawn like peft's."""
    _, model = inserted("llama", rank_stabilized=True, targets=(("query", True), (".*", False)))
    query = model.stack.segments[0][0].attention.query
    assert isinstance(query, LowRank) and isinstance(query.base, Frozen)
    a_LDR = np.asarray(query.a[...])
    assert np.abs(a_LDR).max() <= 32**-0.5 and np.abs(a_LDR).max() > 0.9 * 32**-0.5 and a_LDR.std() > 0.5 * 32**-0.5
    assert not query.b[...].any()
    query = shaken(model).stack.segments[0][0].attention.query
    layer = jax.tree.map(lambda leaf: leaf[1], query)
    x_BTD = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    y = layer.einsum("BTD,DKGH->BTKGH", jnp.asarray(x_BTD), ("batch", "length", "kv_heads", "group", "head_dim"))
    w, a, b = (np.asarray(part[1], np.float64) for part in (query.base[...], query.a[...], query.b[...]))
    expected = np.einsum("btd,dkgh->btkgh", x_BTD, w)
    expected += 6 / 3**0.5 * np.einsum("btd,dr,rkgh->btkgh", x_BTD, a, b)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_dropout_needs_a_key_and_follows_it():
    _, model = inserted("llama", dropout=0.5)
    model = shaken(model)
    run = jax.jit(lambda model, key: seeded(model, key).logits(*ROWS))
    one, same, other = (np.asarray(run(model, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one - logits("llama", model)).max() > 0.1
    layers = jax.tree.leaves(seeded(model, jax.random.key(0)), is_leaf=lambda leaf: isinstance(leaf, LowRank))
    keys = [leaf.key for leaf in layers if isinstance(leaf, LowRank)]
    assert len({str(jax.random.key_data(key)) for key in keys}) == len(keys) == 7 and keys[0].shape == (2,)


def test_only_adapters_train():
    base, model = inserted("llama", targets=(("query", True), (".*", False)))
    assert set(trained(model)) == {f"stack/segments/0/0/attention/query/{part}" for part in "ab"}
    assert {name.removesuffix("/base") for name in variables(model) if name[-2:] not in ("/a", "/b")} == set(
        variables(base)
    )
    assert not trained(frozen(model))


def test_refuses():
    for fields, words in (
        (dict(rank=0), "rank is 0"),
        (dict(rank=True), "rank is True"),
        (dict(rank=8.0), "rank is 8.0"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(dropout=math.nan), "dropout is nan"),
        (dict(dropout=False), "dropout is False"),
        (dict(dropout="0.1"), "dropout is '0.1'"),
        (dict(alpha=0), "alpha is 0; it must be a finite number above 0"),
        (dict(alpha=-1.0), "alpha is -1.0"),
        (dict(alpha=math.nan), "alpha is nan"),
        (dict(alpha=math.inf), "alpha is inf"),
        (dict(alpha="16"), "alpha is '16'"),
        (dict(alpha=True), "alpha is True"),
        (dict(rank_stabilized="no"), "rank_stabilized is 'no'"),
    ):
        with pytest.raises(ValueError, match=words):
            Lora(**fields)
    with pytest.raises(ValueError, match="no pattern finds the weight of a linear layer"):
        inserted("llama", targets=(("norm", True), (".*", False)))
    with pytest.raises(ValueError, match="experts, which do not support dropout"):
        inserted("switch", dropout=0.1)
