"""The content hash of a model: of its values, names and dtypes alone, on whatever mesh they lie."""

import jax.numpy as jnp
import numpy as np
import pytest

from model import axes
from model.fingerprint import array_sum, fingerprint

VALUES = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def of(array, name="w"):
    return fingerprint({name: array_sum(jnp.asarray(array))})


def flipped(bit):
    """VALUES with one bit of one of them changed."""
    bits = VALUES.copy().view(np.uint32)
    bits[3, 2] ^= np.uint32(1 << bit)
    return bits.view(np.float32)


def test_a_mesh_does_not_show():
    expected = array_sum(jnp.asarray(VALUES))
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        for names in (("embed", "mlp"), ("mlp", "embed"), (None, None)):
            assert array_sum(axes.place(jnp.asarray(VALUES), *names)) == expected


@pytest.mark.parametrize(
    "changed",
    [
        *(flipped(bit) for bit in (0, 22, 31)),
        VALUES[[1, 0, 2, 3, 4, 5, 6, 7]],
        VALUES[:, [0, 2, 1, 3]],
        VALUES.view(np.int32),
        VALUES.reshape(4, 8),
    ],
    ids=["lowest-bit", "mantissa", "sign", "rows", "columns", "dtype", "shape"],
)
def test_a_change_shows(changed):
    assert of(changed) != of(VALUES)


def test_signs_of_zero_differ_and_halves_are_hashed():
    assert of(np.float32([0.0])) != of(np.float32([-0.0]))
    narrow = jnp.asarray(VALUES).astype(jnp.bfloat16)
    assert of(narrow) != of(VALUES) and of(narrow) == of(jnp.asarray(np.asarray(narrow)))


def test_names_count_and_their_order_does_not():
    a, b = array_sum(jnp.asarray(VALUES)), array_sum(jnp.asarray(-VALUES))
    assert of(VALUES) != of(VALUES, "v")
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b, "a": a})
    assert fingerprint({"a": a, "b": b}) != fingerprint({"a": b, "b": a}) != fingerprint({"a": a})
