"""Parameters, and THE einsum: every contraction with a weight goes through it.

One seam, so that whatever kind of leaf a weight is, no model equation changes for it.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes


def param(rngs: nnx.Rngs, shape: tuple[int, ...], names: tuple[str, ...], init, dtype) -> nnx.Param:
    """A parameter whose dims have these logical names, split over the mesh that is set (none: not split)."""
    return nnx.Param(init(rngs.params(), shape, dtype), out_sharding=names, eager_sharding=axes.has_mesh())


def einsum(spec: str, x: jax.Array, w: nnx.Param, out: tuple[str, ...]) -> jax.Array:
    """Contract activations with a weight, in the dtype of the activations.

    Args:
      spec: 'x dims,w dims->out dims', e.g. 'BTD,DF->BTF'.
      x: the activations.
      w: the weight, as stored (float32, split over fsdp); it is cast before it is gathered, so that half the bytes
        travel in bfloat16.
      out: logical names of the result's dims.
    """
    w = axes.gather(w[...].astype(x.dtype))
    return jnp.einsum(spec, x, w, out_sharding=axes.out(*out))
