"""Contractions that are fast on every compiler.

A `spec` is an einsum's, 'x dims,w dims->y dims', with one letter per dim.
"""

import jax
import jax.numpy as jnp


def dims(spec: str) -> tuple[str, str, str]:
    """Returns the dims of x, w and y."""
    x_dims, w_dims, y_dims = spec.replace("->", ",").split(",")
    return x_dims, w_dims, y_dims


def einsum(spec: str, sharding, x: jax.Array, w: jax.Array) -> jax.Array:
    """Contracts x with w, like jnp.einsum with other letters.

    jnp.einsum contracts dims in alphabetical order and copies a weight whose dims are in another order. So this renames
    dims to letters in order of appearance.
    """
    letters = {dim: chr(ord("a") + i) for i, dim in enumerate(dict.fromkeys(filter(str.isalpha, spec)))}
    return jnp.einsum("".join(letters.get(char, char) for char in spec), x, w, out_sharding=sharding)


def input_gradient(spec: str, dy: jax.Array, w: jax.Array, sharding) -> jax.Array:
    """Returns the gradient of `einsum` with respect to x, with this sharding."""
    x_dims, w_dims, y_dims = dims(spec)
    return jnp.einsum(f"{y_dims},{w_dims}->{x_dims}", dy, w, out_sharding=sharding)
