"""Block: one layer. Stack: all of them, under one scan with a remat policy.

Layers are stacked along a leading dim and scanned over, so that the program stays one layer long whatever the depth.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Attention
from model.config import ModelConfig
from model.layers import FeedForward, Norm, dropout
from model.masks import Mask
from model.positions import Rotation

# What a layer keeps for its gradient. The rest is computed again (arXiv:1604.06174).
_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm, GPT-2 and LLaMA)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention_norm = Norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = Norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x_BTD, mask: Mask, turn: Rotation | None, key=None, cache=None, layer=None):
        keys = (None, None) if key is None else jax.random.split(key)
        y_BTD, cache = self.attention(self.attention_norm(x_BTD), mask, turn, cache, layer)
        x_BTD = x_BTD + dropout(y_BTD, self.dropout, keys[0])
        y_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, keys[1]), cache


class Stack(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.num_layers, self.unroll, self.remat = config.num_layers, config.scan_unroll, config.remat
        make = nnx.vmap(lambda rngs: Block(config, rngs), transform_metadata={nnx.PARTITION_NAME: "layers"})
        self.blocks = make(rngs.split(config.num_layers))

    def __call__(self, x_BTD, mask: Mask, turn: Rotation | None, key=None, cache=None):
        """Returns the residual stream after the last layer, [B, T, D], and the cache with all new keys and values."""

        def body(carry, layer):
            (x_BTD, cache), (block, index, key) = carry, layer
            return block(x_BTD, mask, turn, key, cache, index), None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=_POLICIES[self.remat], prevent_cse=False)
        keys = None if key is None else jax.random.split(key, self.num_layers)
        layers = (self.blocks, jnp.arange(self.num_layers), keys)
        (x_BTD, cache), _ = jax.lax.scan(body, (x_BTD, cache), layers, unroll=min(self.unroll, self.num_layers))
        return x_BTD, cache
