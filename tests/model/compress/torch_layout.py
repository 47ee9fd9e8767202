"""Weights in all layouts of our layers, and the same in PyTorch's layout."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.roles import Role

# (shape, names of the dims, names of the input dims)
LAYOUTS = {
    "inputs first": ((2, 128, 48), ("layers", "embed", "mlp"), ("embed",)),
    "of every expert": ((2, 3, 128, 32), ("layers", "experts", "embed", "mlp"), ("embed",)),
    "several input dims": (
        (2, 8, 2, 16, 80),
        ("layers", "kv_heads", "group", "head_dim", "embed"),
        ("kv_heads", "group", "head_dim"),
    ),
    "inputs last": ((2, 8, 6, 64), ("layers", "kv_heads", "head_dim", "latent"), ("latent",)),
}


def drawn(layout: str) -> nnx.Param:
    shape, names, inputs = LAYOUTS[layout]
    w = 0.02 * np.random.default_rng(0).standard_normal(shape)
    return nnx.Param(
        jnp.asarray(w, jnp.float32), out_sharding=names, inputs=inputs, role=Role.MATRIX, eager_sharding=False
    )


def matrices(w, names, inputs) -> np.ndarray:
    """Returns [matrices, outputs, inputs] of an array with these dims."""
    lead = sum(name in ("layers", "experts") for name in names)
    order = sorted(range(lead, len(names)), key=lambda i: names[i] in inputs)
    w = np.transpose(w, (*range(lead), *order))
    columns = math.prod(size for size, i in zip(w.shape[lead:], order, strict=True) if names[i] in inputs)
    return w.reshape(math.prod(w.shape[:lead]), -1, columns)
