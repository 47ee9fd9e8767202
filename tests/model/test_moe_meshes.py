"""Mixtures of experts: outputs, gradients and statistics on every mesh are one device's."""

import dataclasses
import functools

import jax
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from model import axes
from model.moe import MoE
from tests.model import tiny
from tests.model.test_meshes import MISTAKE, SHAPES, captured
from tests.model.test_moe import REAL, VARIANTS, X, assert_close, drawn, run

pytestmark = pytest.mark.usefixtures("compiled_afresh")


@functools.cache
def on_one_device(name):
    moe = drawn(VARIANTS[name])
    return jax.device_get((jax.tree.leaves(moe), jax.jit(run)(moe, X, REAL)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("deepseek3", shape) for shape in SHAPES] + [("capacity", shape) for shape in [(8, 1, 1), (1, 1, 8), (2, 2, 2)]],
)
def test_every_mesh_equals_one_device(name, shape):
    leaves, expected = on_one_device(name)
    mesh = axes.make_mesh(dict(zip(axes.MESH_AXES, shape, strict=True)))
    with axes.use_mesh(mesh):
        target = jax.eval_shape(
            lambda: MoE(dataclasses.replace(tiny.LLAMA, experts=VARIANTS[name], mlp_pattern=("sparse",)), nnx.Rngs(0))
        )
        likes, tree = jax.tree.flatten(target)
        put = lambda leaf, like: jax.device_put(leaf, NamedSharding(mesh, like.sharding.spec))
        moe = tree.unflatten([put(leaf, like) for leaf, like in zip(leaves, likes, strict=True)])
        x, real = (jax.device_put(a, axes.batch_sharding(mesh, a.ndim)) for a in (X, REAL))
        program, log = captured(lambda: jax.jit(run).lower(moe, x, real).compile())
        got = program(moe, x, real)
    assert MISTAKE not in log, log
    assert_close(got, expected)
    for gradient, like in zip(jax.tree.leaves(got[0][0]), likes, strict=True):
        assert gradient.sharding.spec == like.sharding.spec
