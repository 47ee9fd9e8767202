"""Mixtures of experts: outputs, gradients and statistics on every mesh equal one device's."""

import dataclasses
import functools
import math

import jax
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from model import axes
from model.experts.moe import MoE
from tests.model import tiny
from tests.model.experts.test_moe import REAL, VARIANTS, X, assert_close, drawn, run
from tests.model.test_meshes import MISTAKE, captured, sizes

pytestmark = pytest.mark.usefixtures("compiled_afresh")


@functools.cache
def on_one_device(name):
    moe = drawn(VARIANTS[name])
    return jax.device_get((jax.tree.leaves(moe), jax.jit(run)(moe, X, REAL)))


CASES = {
    "deepseek3": "data=8 fsdp=8 tensor=8 expert=8 context=8 data=2,expert=2,tensor=2 fsdp=2,expert=2,context=2",
    "capacity": "data=8 tensor=8 expert=4 fsdp=2,expert=2,tensor=2",
}


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in CASES for shape in CASES[name].split()])
def test_every_mesh_equals_one_device(name, shape):
    leaves, expected = on_one_device(name)
    mesh = axes.make_mesh(sizes(shape), jax.devices()[: math.prod(sizes(shape).values())])
    with axes.use_mesh(mesh):
        target = jax.eval_shape(
            lambda: MoE(dataclasses.replace(tiny.LLAMA, experts=VARIANTS[name], mlp_pattern=("sparse",)), nnx.Rngs(0))
        )
        likes, tree = jax.tree.flatten(target)
        put = lambda leaf, like: jax.device_put(leaf, NamedSharding(mesh, like.sharding.spec))
        moe = tree.unflatten([put(leaf, like) for leaf, like in zip(leaves, likes, strict=True)])
        where = NamedSharding(mesh, axes.spec("batch", "length"))
        x, real = jax.device_put((X, REAL), where)
        program, log = captured(lambda: jax.jit(run).lower(moe, x, real).compile())
        got = program(moe, x, real)
    assert MISTAKE not in log, log
    assert_close(got, expected)
    for gradient, like in zip(jax.tree.leaves(got[0][0]), likes, strict=True):
        assert gradient.sharding.spec == like.sharding.spec
