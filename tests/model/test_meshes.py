"""On every mesh, loss and gradients equal one device's, and XLA copies no whole tensor by mistake."""

import dataclasses
import functools
import math
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from model import architectures, axes
from model.parts import Experts
from model.weights import replaced, trained
from tests.model import tiny
from train.objectives.language import Language

MISTAKE = "Involuntary full rematerialization"


pytestmark = pytest.mark.usefixtures("compiled_afresh")
MOE = dataclasses.replace(tiny.LLAMA, experts=Experts(count=4, per_token=2, mlp_dim=16), mlp_pattern=("sparse",))
MODELS = tiny.BOTH | {
    "switch": tiny.SWITCH,
    "latent": tiny.LATENT,
    "experts": MOE,
    "ring": dataclasses.replace(tiny.LATENT, context="ring"),
    "circular": dataclasses.replace(tiny.LLAMA, num_layers=4, pipeline_groups=2),
    "switch, dense": dataclasses.replace(tiny.SWITCH, mlp_pattern=("dense",), experts=None),
}
# Each of these programs is compiled separately. A dense model and one with experts run with every axis alone and with
# products of three; the others run with the axes where they differ.
SHAPES = {
    "llama": (
        "data=8 fsdp=8 tensor=8 context=8 stage=2 fsdp=2,tensor=4 data=2,fsdp=2,tensor=2 fsdp=2,tensor=2,stage=2 "
        "data=2,context=2,tensor=2 stage=2,fsdp=2,context=2 stage=2,data=2,tensor=2"
    ),
    "experts": (
        "expert=4 expert=2,fsdp=4 data=2,expert=2,tensor=2 stage=2,expert=2,tensor=2 expert=2,context=2,fsdp=2 "
        "stage=2,expert=2,context=2 fsdp=2,tensor=2,stage=2 data=2,context=2,tensor=2"
    ),
    "gpt": "data=8 fsdp=8 tensor=8 data=2,fsdp=2,tensor=2 stage=2,context=2,tensor=2",
    "switch": "tensor=8 fsdp=2,expert=2,tensor=2 expert=2,context=2,tensor=2",
    "latent": "fsdp=8 tensor=8 data=2,fsdp=2,tensor=2 stage=2,context=2,tensor=2",
    "ring": "context=4 stage=2,context=2,tensor=2",
    "circular": "stage=2,data=2,fsdp=2",
    "switch, dense": "stage=2,data=2,fsdp=2",
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes.split()]


def sizes(shape: str) -> dict[str, int]:
    """Returns devices of axes, from 'data=2,fsdp=4'."""
    return {name: int(size) for name, size in (part.split("=") for part in shape.split(","))}


def batch(name):
    tokens, segments, positions = tiny.packed_rows(8, 16)
    source = zip(
        ("encoder_tokens", "encoder_segment_ids", "encoder_positions"), tiny.packed_rows(8, 24, 2), strict=True
    )
    weights = np.random.default_rng(1).uniform(0, 2, tokens.shape).astype(np.float32) * (segments > 0)
    targets = np.roll(tokens, -1, axis=1)
    rows = dict(tokens=tokens, targets=targets, segment_ids=segments, positions=positions, weights=weights)
    return rows | dict(source if name.startswith("switch") else ())


def compiled(model, rows):
    """Returns the program (model, batch) -> (gradients of trainable parameters by name, Loss)."""
    objective = Language(z_loss=1e-3, balance_loss=1e-2, router_z_loss=1e-3)

    def loss_and_gradients(model, batch):
        def total(params):
            loss = objective(replaced(model, params), batch, None)
            return loss.total, loss

        return jax.grad(total, has_aux=True)(trained(model))

    return jax.jit(loss_and_gradients).lower(model, rows).compile()


def captured(run):
    """Returns (result, what was written to file descriptor 2): XLA's C++ log does not go through sys.stderr."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            result = run()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        log.seek(0)
        return result, log.read().decode(errors="replace")


@functools.cache
def on_one_device(name):
    model = tiny.drawn(MODELS[name])
    return model, expected(model, batch(name))


def expected(model, rows):
    """Returns (gradients, Loss) on one device."""
    gradients, loss = compiled(model, rows)(model, rows)
    return jax.device_get((jax.tree.leaves(gradients), loss))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_mesh_equals_one_device(name, shape):
    config = MODELS[name]
    config.check_mesh(sizes(shape))
    compare(sizes(shape), *on_one_device(name), lambda key: architectures.make(config, nnx.Rngs(key)), batch(name))


def compare(shape, model, wanted, make, rows):
    """Places a model on a mesh and asserts that its gradients and loss there are the expected ones.

    Args:
      model: on one device.
      make: key -> the same model; it only provides shapes and shardings on the mesh.
      wanted: (gradients, Loss).
    """
    mesh = axes.make_mesh(shape, jax.devices()[: math.prod(shape.values())])
    with axes.use_mesh(mesh):
        target = jax.eval_shape(make, jax.random.key(0))
        place = lambda leaf, like: jax.device_put(np.asarray(leaf), NamedSharding(mesh, like.sharding.spec))
        leaves, (likes, tree) = jax.tree.leaves(model), jax.tree.flatten(target)
        model = tree.unflatten([place(leaf, like) for leaf, like in zip(leaves, likes, strict=True)])
        rows = jax.device_put(rows, axes.batch_sharding(mesh))
        program, log = captured(lambda: compiled(model, rows))
        gradients, loss = program(model, rows)
    assert MISTAKE not in log, log
    references, expected_loss = wanted
    np.testing.assert_allclose(loss.total, expected_loss.total, rtol=1e-6)
    for figure, reference in zip(jax.tree.leaves(loss.metrics), jax.tree.leaves(expected_loss.metrics), strict=True):
        np.testing.assert_allclose(figure, reference, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss.weight, expected_loss.weight, rtol=1e-6)
    likes = jax.tree.leaves(trained(target))
    for gradient, reference, like in zip(jax.tree.leaves(gradients), references, likes, strict=True):
        assert gradient.sharding.spec == like.sharding.spec
        # Gradients are sums over some hundred tokens; the tolerance is 1e-5 of a tensor's largest value.
        scale = max(1, np.abs(reference).max())
        np.testing.assert_allclose(np.asarray(gradient) / scale, reference / scale, atol=1e-5)


def test_the_warning_would_be_seen():
    """This program is known to cause the warning."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = lambda x, *spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
    f = lambda x: split(jnp.cos(split(jnp.sin(x), "a", None, "b")), None, ("b", "a"), None)
    _, log = captured(lambda: jax.jit(f).lower(jnp.ones((8, 8, 8))).compile())
    assert MISTAKE in log
