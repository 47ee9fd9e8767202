"""A content hash of a model: the same for the same values, on whatever mesh they lie.

Each element's bits are mixed with its place (the finalizer of MurmurHash3, public domain) and added up, modulo 2^32, so
devices hash what they have and one sum joins them. It finds changes; it is no protection against one who forges.
"""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

_SEEDS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def fingerprint(sums: Mapping[str, str]) -> str:
    """Of a model, from `array_sum` of each of its arrays by name."""
    return hashlib.sha256("\n".join(f"{name} {sums[name]}" for name in sorted(sums)).encode()).hexdigest()[:32]


def array_sum(array: jax.Array) -> str:
    """Of one array: its shape, dtype and values."""
    return f"{array.dtype} {array.shape} " + " ".join(f"{int(word):08x}" for word in jax.device_get(_sums(array)))


@jax.jit
def _sums(array):
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros((1,) * array.ndim, jnp.uint32)
    for dim, size in enumerate(array.shape):
        shape = tuple(size if other == dim else 1 for other in range(array.ndim))
        place = place * jnp.uint32(0x01000193) + jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
    return [_mixed(bits ^ (place * jnp.uint32(seed) + jnp.uint32(seed >> 3))).sum(dtype=jnp.uint32) for seed in _SEEDS]


def _mixed(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
