"""Contractions as they are written for every compiler.

A `spec` is that of an einsum, 'x dims,w dims->y dims', one letter a dim.
"""

import jax
import jax.numpy as jnp


def dims(spec: str) -> tuple[str, str, str]:
    """Those of x, w and y."""
    x_dims, w_dims, y_dims = spec.replace("->", ",").split(",")
    return x_dims, w_dims, y_dims


def einsum(spec: str, sharding, x: jax.Array, w: jax.Array) -> jax.Array:
    """jnp.einsum contracts dims in the order of their letters, and copies a weight whose own order is another. So dims
    get other letters, in the order in which they come."""
    letters = {dim: chr(ord("a") + i) for i, dim in enumerate(dict.fromkeys(filter(str.isalpha, spec)))}
    return jnp.einsum("".join(letters.get(char, char) for char in spec), x, w, out_sharding=sharding)


def input_gradient(spec: str, dy: jax.Array, w: jax.Array, sharding) -> jax.Array:
    """The gradient of `einsum` by x, placed as `sharding` says."""
    x_dims, w_dims, y_dims = dims(spec)
    return jnp.einsum(f"{y_dims},{w_dims}->{x_dims}", dy, w, out_sharding=sharding)
