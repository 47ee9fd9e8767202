"""Grouped-query self-attention (arXiv:2305.13245): projections, rotary positions, softmax attention, output.

Weights keep their head dims apart (no reshapes), so that they split over `tensor` by whole key/value heads.
Dims: B batch, T length, D embed, K key/value heads, G queries per key/value head, H head_dim.
"""

import jax.numpy as jnp
from flax import nnx

from model.attend import attend
from model.config import ModelConfig
from model.layers import RESIDUAL, add_bias, residual_init
from model.masks import Mask
from model.positions import Rotation, rotate
from model.weights import einsum, param

QUERIES = ("batch", "length", "kv_heads", "group", "head_dim")
KEYS = ("batch", "length", "kv_heads", "head_dim")


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, h, k = config.embed_dim, config.head_dim, config.num_kv_heads
        g, dtype = config.num_heads // k, jnp.dtype(config.param_dtype)
        init, zeros = nnx.initializers.normal(config.init_std), nnx.initializers.zeros
        self.implementation = config.attention
        self.query = param(rngs, (d, k, g, h), ("embed", *QUERIES[2:]), init, dtype)
        self.key = param(rngs, (d, k, h), ("embed", *KEYS[2:]), init, dtype)
        self.value = param(rngs, (d, k, h), ("embed", *KEYS[2:]), init, dtype)
        self.out = param(rngs, (k, g, h, d), (*QUERIES[2:], "embed"), residual_init(config), dtype)
        bias = lambda shape, names: param(rngs, shape, names, zeros, dtype) if config.bias else None
        self.query_bias = bias((k, g, h), QUERIES[2:])
        self.key_bias = bias((k, h), KEYS[2:])
        self.value_bias = bias((k, h), KEYS[2:])
        self.out_bias = bias((d,), ("norm",))

    def __call__(self, x_BTD, mask: Mask, turn: Rotation | None, cache=None, layer=None):
        """Returns the layer's output [B, T, D] and the cache (decode/cache.py) with this layer's keys and values."""
        q_BTKGH = add_bias(einsum("BTD,DKGH->BTKGH", x_BTD, self.query, QUERIES), self.query_bias)
        k_BTKH = add_bias(einsum("BTD,DKH->BTKH", x_BTD, self.key, KEYS), self.key_bias)
        v_BTKH = add_bias(einsum("BTD,DKH->BTKH", x_BTD, self.value, KEYS), self.value_bias)
        if turn is not None:
            q_BTKGH, k_BTKH = rotate(q_BTKGH, turn), rotate(k_BTKH, turn)
        aligned = cache is None
        if cache is not None:
            cache, k_BTKH, v_BTKH = cache.extend(layer, k_BTKH, v_BTKH)
        y_BTKGH = attend(q_BTKGH, k_BTKH, v_BTKH, mask, aligned=aligned, implementation=self.implementation)
        return add_bias(einsum("BTKGH,KGHD->BTD", y_BTKGH, self.out, RESIDUAL), self.out_bias), cache
