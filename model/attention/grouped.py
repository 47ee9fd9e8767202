"""Grouped-query attention (arXiv:2305.13245): self-attention, or cross-attention to an encoder's output.

Weights have separate head dims (no reshapes), so that `tensor` splits them by whole key/value heads.
Dims: B batch, T length, S length of the memory, D embed, K key/value heads, G queries per key/value head, H head_dim.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.attend import Rule, attend, probabilities
from model.attention.masks import Mask
from model.attention.positions import Rotation, rotate
from model.config import ModelConfig
from model.layers import RESIDUAL, Norm, add_bias, residual_init
from model.roles import Role
from model.weights import einsum, param

QUERIES = ("batch", "length", "kv_heads", "group", "head_dim")
KEYS = ("batch", "length", "kv_heads", "head_dim")


class Memory(NamedTuple):
    """An encoder's output."""

    x_BSD: jax.Array  # in the compute dtype
    segments_BS: jax.Array  # int32
    positions_BS: jax.Array  # int32
    keys: tuple | None = None  # each layer's keys and values, for cached decoding; None: layers compute them


class Context(NamedTuple):
    """What every layer gets besides the residual stream."""

    mask: Mask
    turns: dict[str, Rotation | None]  # rotary angles by kind of attention ('global', 'local')
    bias: jax.Array | None = None  # added to the scores of all layers, float32 [B, K, G, T, S]
    memory: Memory | None = None
    # In a stack, the taps.Tap that requests results of its layers; in a layer, the dict of results that it fills.
    tap: Any = None


class Attention(nnx.Module):
    """Grouped-query attention, with its projections.

    Args:
      kind: 'global' or 'local' (sliding window).
      causal: queries see no later keys.
      cross: keys and values come from the memory.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, kind: str, *, causal: bool, cross: bool = False):
        d, h, k = config.embed_dim, config.head_dim, config.num_kv_heads
        g, dtype = config.num_heads // k, jnp.dtype(config.param_dtype)
        init, zeros = nnx.initializers.normal(config.init_std), nnx.initializers.zeros
        # Initial scores have the usual size for any scale (T5's scale is 1, and its initial queries are smaller).
        query_init = nnx.initializers.normal(config.init_std * h**-0.5 / config.attention_scale)
        self.kind, self.cross, self.interleaved = kind, cross, config.rope.interleaved
        self.rule = Rule(
            causal=causal and not cross,
            window=config.window if kind == "local" else 0,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            alibi=config.position == "alibi" and not cross,
            implementation=config.attention,
            context=config.context,
        )
        matrix = functools.partial(param, dtype=dtype, role=Role.MATRIX, inputs=("embed",))
        self.query = matrix(rngs, (d, k, g, h), ("embed", *QUERIES[2:]), query_init)
        self.key = matrix(rngs, (d, k, h), ("embed", *KEYS[2:]), init)
        self.value = matrix(rngs, (d, k, h), ("embed", *KEYS[2:]), init)
        self.out = matrix(rngs, (k, g, h, d), (*QUERIES[2:], "embed"), residual_init(config), inputs=QUERIES[2:])
        plain = functools.partial(param, init=zeros, dtype=dtype, role=Role.BIAS)
        bias = lambda wanted, shape, names: plain(rngs, shape, names) if wanted else None
        self.query_bias = bias(config.qkv_bias, (k, g, h), QUERIES[2:])
        self.key_bias = bias(config.qkv_bias, (k, h), KEYS[2:])
        self.value_bias = bias(config.qkv_bias, (k, h), KEYS[2:])
        self.out_bias = bias(config.out_bias, (d,), ("norm",))
        self.query_norm = Norm(config, rngs, h) if config.qk_norm else None
        self.key_norm = Norm(config, rngs, h) if config.qk_norm else None

    def __call__(self, x_BTD, context: Context, cache=None, layer=None):
        """Returns the layer's output [B, T, D] and the cache (decode/cache.py) with this layer's keys and values."""
        q_BTKGH = add_bias(einsum("BTD,DKGH->BTKGH", x_BTD, self.query, QUERIES), self.query_bias)
        if self.query_norm is not None:
            q_BTKGH = self.query_norm(q_BTKGH)
        turn = None if self.cross else context.turns[self.kind]
        if turn is not None:
            q_BTKGH = rotate(q_BTKGH, turn, self.interleaved)
        if self.cross:
            memory, bias = context.memory, None
            assert memory is not None  # EncoderDecoder always sets one
            mask = context.mask.onto(memory.segments_BS, memory.positions_BS)
            k_BSKH, v_BSKH = self.keys(memory.x_BSD, None) if memory.keys is None else memory.keys[layer]
        else:
            mask, bias = context.mask, context.bias
            k_BSKH, v_BSKH = self.keys(x_BTD, turn)
            if cache is not None:
                cache, k_BSKH, v_BSKH = cache.extend(layer, k_BSKH, v_BSKH)
        own = "cross" if self.cross else "attention"
        if context.tap and own in context.tap:
            context.tap[own] = probabilities(q_BTKGH, k_BSKH, mask, self.rule, bias)
        aligned = cache is None and not self.cross
        y_BTKGH = attend(q_BTKGH, k_BSKH, v_BSKH, mask, self.rule, aligned=aligned, bias=bias)
        return add_bias(einsum("BTKGH,KGHD->BTD", y_BTKGH, self.out, RESIDUAL), self.out_bias), cache

    def keys(self, x_BTD, turn: Rotation | None):
        """Returns keys and values, [B, T, K, H] each."""
        k_BTKH = add_bias(einsum("BTD,DKH->BTKH", x_BTD, self.key, KEYS), self.key_bias)
        v_BTKH = add_bias(einsum("BTD,DKH->BTKH", x_BTD, self.value, KEYS), self.value_bias)
        if self.key_norm is not None:
            k_BTKH = self.key_norm(k_BTKH)
        return (k_BTKH if turn is None else rotate(k_BTKH, turn, self.interleaved)), v_BTKH
