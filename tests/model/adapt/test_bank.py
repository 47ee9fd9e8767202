"""Several adapters in one batch: each row gets the result of its adapter alone, and of the merged model."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import architectures, axes
from model.adapt.bank import bank, chosen
from model.adapt.lora import Lora, merged
from model.architectures import Source
from model.attention.masks import default_segments
from model.decode.generate import generate
from model.weights import frozen, is_variable, replaced, trained, variables
from tests.model import tiny

# Different ranks, scales and targets.
ADAPTERS = (
    Lora(rank=3, alpha=9.0, targets=(("attention|cross", True), (".*", False))),
    Lora(
        rank=2,
        alpha=1.0,
        rank_stabilized=True,
        targets=(("attention/(query|out)|feed_forward/up", True), (".*", False)),
    ),
    Lora(rank=1, alpha=2.0, targets=(("key_up|value_up|latent_down|stack/.*/value", True), (".*", False))),
)
DENSE = dataclasses.replace(tiny.SWITCH, experts=None, mlp_pattern=("dense",))
CONFIGS = {"llama": tiny.LLAMA, "latent": tiny.LATENT, "encoder-decoder": DENSE}
TOLERANCE = dict(atol=2e-4, rtol=0)  # merging rounds the weights
ROWS = [1, -1, 0, 2, 0, 1, 2, -1]


def mesh(shape):
    return contextlib.nullcontext() if shape is None else axes.use_mesh(axes.make_mesh(shape))


@functools.cache
def drawn(name):
    return tiny.drawn(CONFIGS[name])


def models(name):
    """Returns (the base, the models with one adapter each), on the current mesh."""
    place = lambda v, value: v.replace(axes.place(jnp.asarray(value, jnp.float32), *v.get_metadata("out_sharding")))
    base = jax.tree.map(lambda v: place(v, v[...]), drawn(name), is_leaf=is_variable)
    old, rng = variables(base), np.random.default_rng(1)

    def adapted(settings):
        model = jax.eval_shape(lambda: settings.insert(frozen(base), jax.random.key(0)))
        fill = lambda path, v: (
            place(v, 0.3 * rng.standard_normal(v.shape)) if path in trained(model) else old[path.removesuffix("/base")]
        )
        return replaced(model, {path: fill(path, v) for path, v in variables(model).items()})

    return base, [adapted(settings) for settings in ADAPTERS]


@jax.jit
def logits(model):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (len(ROWS), 7)), jnp.int32)
    tokens = axes.place(tokens, "batch", None)
    source = (
        {"source": Source(tokens, *default_segments(tokens))} if model.config.architecture == "encoder_decoder" else {}
    )
    return model.logits(tokens, **source)


@functools.cache
def expected(name):
    """Returns the logits of all rows with the base, and with each adapter merged into it."""
    base, adapted = models(name)
    found = np.stack([logits(model) for model in (base, *(jax.jit(merged)(one) for one in adapted))])
    assert np.abs(found[1:] - found[0]).max((1, 2, 3)).min() > 0.03
    return found


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llama", None),
        ("latent", None),
        ("encoder-decoder", None),
        ("llama", {"data": 2, "tensor": 4}),
        ("latent", {"fsdp": 4, "tensor": 2}),
    ],
)
def test_each_row_is_as_with_its_adapter_merged(name, shape):
    wanted = np.stack([expected(name)[number + 1, row] for row, number in enumerate(ROWS)])
    with mesh(shape):
        base, adapted = models(name)
        many = chosen(bank(base, adapted), ROWS)
        np.testing.assert_allclose(logits(many), wanted, **TOLERANCE)
        if shape is None:
            np.testing.assert_allclose(logits(adapted[0]), expected(name)[1], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("llama", None), ("latent", None), ("encoder-decoder", None), ("latent", {"data": 2, "fsdp": 2, "tensor": 2})],
)
def test_decoding(name, shape):
    """Rows that pad the batch for the mesh have no adapter; latent attention is absorbed in decoding steps."""
    config = CONFIGS[name]
    prompts, sources = [[3, 5, 8], [7], [3, 5, 8]], [[5, 6], [9, 4, 2], [5, 6]]
    others = {"sources": sources} if config.architecture == "encoder_decoder" else {}
    run = functools.partial(generate, prompts=prompts, key=jax.random.key(0), max_new_tokens=6, **others)
    base, adapted = models(name)
    alone = [run(model).tokens for model in (base, *map(jax.jit(merged), adapted))]
    wanted = np.stack([alone[number + 1][row] for row, number in enumerate((0, 2, -1))])
    assert (alone[1][0] != alone[0][0]).any()
    with mesh(shape):
        base, adapted = models(name)
        np.testing.assert_array_equal(run(bank(base, adapted), adapters=[0, 2, -1]).tokens, wanted)


def test_what_is_refused():
    base, adapted = models("llama")
    with pytest.raises(ValueError, match="adapter 1 does not exist"):
        bank(base, [adapted[0], base])
    many = bank(base, adapted)
    with pytest.raises(ValueError, match="choose one for each row"):
        many.logits(jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="adapters are 0 to 2"):
        chosen(many, [0, 3])
    with pytest.raises(ValueError, match="2 prompts and 1 adapters"):
        generate(many, [[1], [2]], jax.random.key(0), max_new_tokens=2, adapters=[0])
    settings = Lora(targets=(("experts_up", True), (".*", False)))
    make = lambda: settings.insert(frozen(architectures.make(tiny.SWITCH, nnx.Rngs(0))), jax.random.key(0))
    with pytest.raises(ValueError, match="experts; their adapters can't be chosen by row"):
        bank(base, [jax.eval_shape(make)])
