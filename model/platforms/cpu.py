"""Contractions with a custom gradient for XLA's CPU compiler."""

import functools
import math

import jax
import jax.numpy as jnp

from model import axes
from model.platforms import products

# Multiply-adds of a product up to which this file's gradient is used. It speeds up a step of 2^26-sized products 1.3x,
# of 2^28 1.15x. From jax 0.12 on, launch/program/runtime.py selects matmuls that are fast for larger products as well.
_LIMIT = math.inf if jax.__version_info__ < (0, 12) else 2**29


def contraction(spec: str, sharding, x: jax.Array, w: jax.Array) -> jax.Array:
    """products.einsum, with the faster gradient where it is faster and supports the spec."""
    x_dims, w_dims, y_dims = products.dims(spec)
    rows = math.prod(size for dim, size in zip(x_dims, x.shape, strict=True) if dim not in w_dims)
    apart = not set(x_dims) & set(w_dims) & set(y_dims)  # false for the head dim of absorbed latent attention
    return (_own if apart and rows * w.size < _LIMIT else products.einsum)(spec, sharding, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _own(spec, sharding, x, w):
    return products.einsum(spec, sharding, x, w)


def _forward(spec, sharding, x, w):
    return products.einsum(spec, sharding, x, w), (x, w)


def _backward(spec, sharding, residuals, dy):
    """The gradient of w sums over the rows, which x and dy share. As matrices, if x is the smaller one:

        x [rows, inputs]^T  times  dy [rows, outputs]  =  [inputs, outputs]  ->  w's own order of dims

    The compiler transposes a copy of such a product's first operand, so the smaller one comes first. If that is dy, the
    product is [outputs, inputs].
    """
    x, w = residuals
    x_dims, w_dims, y_dims = products.dims(spec)
    dx = products.input_gradient(spec, dy, w, jax.typeof(x).sharding.spec if axes.has_mesh() else None)

    rows = [dim for dim in x_dims if dim not in w_dims]
    (first, first_dims), (second, second_dims) = sorted(((x, x_dims), (dy, y_dims)), key=lambda pair: pair[0].size)
    summed = tuple(tuple(map(dims.index, rows)) for dims in (first_dims, second_dims))
    made = [dim for dim in first_dims + second_dims if dim not in rows]  # the product's dims, in order
    placed = None
    if axes.has_mesh():
        of_w = dict(zip(w_dims, jax.typeof(w).sharding.spec or (None,) * w.ndim, strict=True))
        placed = axes.PartitionSpec(*map(of_w.get, made))
    dw = jax.lax.dot_general(first, second, (summed, ((), ())), out_sharding=placed)
    # Without the barrier, the compiler would fuse the transpose below into the product and swap its operands again.
    dw = jax.lax.optimization_barrier(dw)
    return dx, jnp.transpose(dw, [made.index(dim) for dim in w_dims])


_own.defvjp(_forward, _backward)
