"""The hash of a model depends on values, names and dtypes, but not on the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import axes
from model.fingerprint import _sums, array_sum, fingerprint

VALUES = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def of(array, name="w"):
    return fingerprint({name: array_sum(jnp.asarray(array))})


def flipped(bit):
    """Returns VALUES with one bit of one of them flipped."""
    bits = VALUES.copy().view(np.uint32)
    bits[3, 2] ^= np.uint32(1 << bit)
    return bits.view(np.float32)


def by_numpy(array):
    """Computes the four words of an array by the formula."""
    array = np.atleast_1d(array)
    place = np.uint32(0)
    for dim, indices in enumerate(np.indices(array.shape, np.uint32, sparse=True)):
        place = place + indices * np.uint32(pow(0x01000193, array.ndim - 1 - dim, 2**32))
    bits = array.view(np.uint32 if array.itemsize == 4 else np.uint16).astype(np.uint32)
    words = []
    for seed in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F):
        x = bits ^ (place * np.uint32(seed) + np.uint32(seed >> 3))
        x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
        words.append(int((x ^ (x >> 16)).sum(dtype=np.uint32)))
    return words


@pytest.mark.parametrize("shape", [(8, 4), (3, 1021, 520), (4, 1024, 256), (600_000,), ()])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_small_and_large_arrays_by_the_formula(shape, dtype):
    values = np.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
    assert _sums(jnp.asarray(values)).tolist() == by_numpy(values)


@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 0.2), (jnp.bfloat16, 1.2)])
def test_memory(dtype, limit):
    """Hashing a large array needs little extra memory. (On a CPU, bfloat16 is copied.)"""
    array = jax.ShapeDtypeStruct((12, 1024, 4096), dtype)
    beside = _sums.lower(array).compile().memory_analysis().temp_size_in_bytes
    assert beside < limit * array.size * array.dtype.itemsize


def test_a_mesh_does_not_show_in_large_arrays():
    values = np.random.default_rng(2).standard_normal((4, 1024, 512), np.float32)
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        for names in (("layers", "embed", "mlp"), ("vocab", None, "embed"), ("batch", None, None)):
            assert _sums(axes.place(jnp.asarray(values), *names)).tolist() == by_numpy(values)


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
