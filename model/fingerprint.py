"""A content hash of a model: equal values give equal hashes, on any mesh.

Each element's bits are mixed with its index (the finalizer of MurmurHash3, public domain) and summed modulo 2^32. Each
device hashes its own shard, and one sum joins them. The hash detects changes; it does not protect against forgery.
"""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from model import axes

_SEEDS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)
_PRIME = 0x01000193
_AT_ONCE = 2**18  # elements hashed at a time: compilers may keep each one's mixed bits, 16 bytes


def fingerprint(sums: Mapping[str, str]) -> str:
    """Returns the hash of a model, from `array_sum` of each of its arrays by name."""
    return hashlib.sha256("\n".join(f"{name} {sums[name]}" for name in sorted(sums)).encode()).hexdigest()[:32]


def array_sum(array: jax.Array) -> str:
    """Returns the hash of one array's shape, dtype and values."""
    return f"{array.dtype} {array.shape} " + " ".join(f"{int(word):08x}" for word in jax.device_get(_sums(array)))


@jax.jit
def _sums(array):
    """Returns uint32 [4]. Works in parts, so that its memory does not grow with the array."""
    strides = _strides(array)
    if array.dtype.itemsize == 2:  # in the loops below, XLA's CPU compiler would copy a whole bfloat16 array to float32
        array = jax.lax.bitcast_convert_type(array, jnp.uint16)
    spec = jax.typeof(array).sharding.spec
    if not any(spec):
        return _part(array, jnp.uint32(0), strides)

    def local(part):
        split = [(names, size * stride) for names, size, stride in zip(spec, part.shape, strides, strict=True) if names]
        start = sum(jax.lax.axis_index(names).astype(jnp.uint32) * jnp.uint32(step % 2**32) for names, step in split)
        return jax.lax.psum(_part(part, start, strides), tuple(jax.tree.leaves(tuple(spec))))

    return jax.shard_map(local, in_specs=spec, out_specs=axes.PartitionSpec())(array)


def device_sums(arrays) -> jax.Array:
    """Returns, for each array, hashes of what each device of the mesh holds; call it under jax.jit.

    Replicas of the same shard have equal hashes.

    Returns:
      uint32 [arrays, devices, 4], replicated on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def local(*parts):
        flat = [jax.lax.bitcast_convert_type(a, jnp.uint16) if a.dtype.itemsize == 2 else a for a in parts]
        return jnp.stack([_part(a, jnp.uint32(0), _strides(a)) for a in flat])[:, None]

    specs = tuple(jax.typeof(array).sharding.spec for array in arrays)
    everywhere = axes.PartitionSpec(None, mesh.axis_names)
    sums = jax.shard_map(local, in_specs=specs, out_specs=everywhere, check_vma=False)(*arrays)
    return jax.reshard(sums, axes.PartitionSpec())


def _strides(array) -> list[int]:
    return [pow(_PRIME, array.ndim - 1 - dim, 2**32) for dim in range(array.ndim)]


def _part(array, start, strides):
    """Hashes elements whose indices are `start` plus, for each dim, a multiple of its stride."""
    if array.size <= _AT_ONCE:
        return _whole(array, start, strides)
    count, rest = array.shape[0], array.size // array.shape[0]
    rows = max((n for n in range(1, _AT_ONCE // rest + 1) if count % n == 0), default=1)
    parts = array.reshape(count // rows, *((rows,) if rows > 1 else ()), *array.shape[1:])
    step, inner = jnp.uint32(rows * strides[0] % 2**32), strides if rows > 1 else strides[1:]
    one = lambda part: _part(part[0], start + part[1] * step, inner)
    return jax.lax.map(one, (parts, jnp.arange(count // rows, dtype=jnp.uint32))).sum(0, dtype=jnp.uint32)


def _whole(array, start, strides):
    place = start
    for dim, stride in enumerate(strides):
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, dim) * jnp.uint32(stride)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    mixed = [_mixed(bits ^ (place * jnp.uint32(seed) + jnp.uint32(seed >> 3))) for seed in _SEEDS]
    return jnp.stack([one.sum(dtype=jnp.uint32) for one in mixed])


def _mixed(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
