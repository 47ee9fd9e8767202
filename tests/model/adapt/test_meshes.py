"""On every mesh, the loss and the gradients of what trains over a frozen model equal those of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import architectures, axes
from model.adapt import tuning
from model.adapt.lora import seeded
from model.compress.quantize import quantize
from model.weights import trained
from tests.model import tiny
from tests.model.adapt.test_lora import shaken
from tests.model.test_meshes import batch, compare, expected, sizes

pytestmark = pytest.mark.usefixtures("compiled_afresh")

METHODS = {
    "lora": dict(method="lora", rank=2, alpha=8.0),
    "houlsby": dict(method="adapter", placement="houlsby", reduction=8),
    "pfeiffer": dict(method="adapter", placement="pfeiffer", reduction=8),
    "prompt": dict(method="prompt", length=3),
    "qlora": dict(method="lora", rank=2, alpha=8.0, base="nf4"),
    "qlora-int8": dict(method="lora", rank=2, alpha=8.0, base="int8"),
}
CASES = [(name, "data=2,fsdp=2,tensor=2") for name in METHODS] + [("lora", "fsdp=4,tensor=2")]
CASES += [(name, "stage=2,context=2,tensor=2") for name in ("lora", "houlsby", "prompt", "qlora", "qlora-int8")]


def make(name, key):
    """Returns the model prepared for training."""
    settings = tuning.make(METHODS[name])
    model = architectures.make(tiny.LLAMA, nnx.Rngs(key))
    return settings.apply(quantize(model, settings.quantization) if settings.quantization else model, key)


def rows(name):
    """Starts every segment with the prompt's ids, which follow the vocabulary's."""
    found = batch("llama")
    if name == "prompt":
        found["tokens"] = np.where(found["positions"] < 3, 64 + found["positions"], found["tokens"])
    return found


@functools.cache
def on_one_device(name):
    if "base" in METHODS[name]:
        model = shaken(jax.jit(functools.partial(make, name))(jax.random.key(0)))
    else:
        model = tiny.filled(jax.eval_shape(functools.partial(make, name), jax.random.key(0)))
    return model, expected(model, rows(name))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_mesh_equals_one_device(name, shape):
    model, wanted = on_one_device(name)
    gradients, _ = wanted
    assert len(gradients) == len(trained(model)) and all(np.abs(gradient).max() > 1e-3 for gradient in gradients)
    compare(sizes(shape), model, wanted, functools.partial(make, name), rows(name))


def test_micro_batches_of_a_pipeline_do_not_share_their_dropout():
    """A stage puts equal rows into different micro-batches, and dropout makes them differ. This includes the circular
    schedule, which redistributes a stage's layers."""
    config = dataclasses.replace(tiny.LLAMA, num_layers=4, pipeline_groups=2)
    settings = tuning.make(dict(method="lora", rank=2, alpha=8.0, dropout=0.5))
    with axes.use_mesh(axes.make_mesh({"stage": 2}, jax.devices()[:2])) as mesh:
        start = lambda key: settings.apply(architectures.make(config, nnx.Rngs(key)), key)
        model = tiny.filled(jax.eval_shape(start, jax.random.key(0)))
        equal = jax.device_put(np.tile(np.arange(8, dtype=np.int32), (8, 1)), axes.batch_sharding(mesh))
        run = lambda model, rows: seeded(model, jax.random.key(1)).logits(rows, jnp.ones_like(rows), rows)
        logits = np.asarray(jax.jit(run)(model, equal))
    apart = np.abs(logits[:, None] - logits[None]).max((2, 3))
    assert apart[~np.eye(8, dtype=bool)].min() > 0.1
