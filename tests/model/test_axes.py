"""Meshes shard arrays as planned, and wrong ones get clear errors."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from model import axes
from model.architectures import Decoder
from tests.model import tiny

ONES = dict.fromkeys(axes.MESH_AXES, 1)
STORED = ("fsdp", "expert", "context")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"model": 8}, "unknown axis 'model'; the axes are data, stage, fsdp, expert, context, tensor"),
        ({"data": 3}, "multiply to 3, which does not fit the 8 devices"),
        ({"data": -1, "tensor": 3}, "multiply to 3, which does not fit the 8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one may be -1"),
        ({"data": 0}, "sizes must be positive"),
        ({"data": -1, "tensor": 16}, "multiply to 16, which does not fit the 8 devices"),
    ],
)
def test_a_mesh_that_cannot_be_made_says_why(shape, words):
    with pytest.raises(ValueError, match=words):
        axes.make_mesh(shape)


def test_parts_of_a_batch():
    """A process holds its devices' shards, which need not be adjacent, and other processes may hold the same ones."""
    devices = jax.devices()
    mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert axes.batch_parts(mesh) == ([0, 1, 2, 3], 4)
    assert axes.batch_parts(mesh, devices[2:4]) == ([1], 4)
    assert axes.batch_parts(mesh, [devices[1], devices[4]]) == ([0, 2], 4)
    mesh = axes.make_mesh({"fsdp": 1, "tensor": 8})
    assert axes.batch_parts(mesh, devices[:4]) == axes.batch_parts(mesh, devices[4:]) == ([0], 1)


def test_minus_one_takes_the_rest():
    assert dict(axes.make_mesh({"fsdp": -1, "tensor": 2}).shape) == ONES | {"fsdp": 4, "tensor": 2}
    assert dict(axes.make_mesh().shape) == ONES | {"data": 8}


def test_parameters_are_born_sharded():
    mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with axes.use_mesh(mesh):
        model = jax.jit(lambda key: Decoder(tiny.LLAMA, nnx.Rngs(key)))(jax.random.key(0))
        assert axes.parts("batch") == 4
    spec = lambda param: param[...].sharding.spec
    assert spec(model.stack.segments[0][0].attention.query) == PartitionSpec(None, STORED, "tensor", None, None)
    assert spec(model.stack.segments[0][0].feed_forward.down) == PartitionSpec(None, "tensor", STORED)
    assert spec(model.inputs.tokens.table) == PartitionSpec("tensor", STORED)
    for leaf in jax.tree.leaves(model):
        # Norms are small and replicated; everything else is split over fsdp and tensor.
        expected = leaf.size if leaf.size <= 2 * 32 else leaf.size // 4
        assert {shard.data.size for shard in leaf.addressable_shards} == {expected}


def test_the_same_key_gives_the_same_parameters_on_every_mesh():
    make = lambda key: Decoder(tiny.LLAMA, nnx.Rngs(key))
    alone = jax.jit(make)(jax.random.key(0))
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        split = jax.jit(make)(jax.random.key(0))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), rtol=1e-5, atol=1e-7)


def test_without_a_mesh_nothing_is_sharded():
    assert not axes.has_mesh() and axes.out("batch") is None and axes.parts("batch") == 1
