"""Block: one layer. Stack: all of them, under one scan with a remat policy.

Layers are stacked along a leading dim and scanned over, so that the program stays one layer long whatever the depth.
"""

import jax
from flax import nnx

from model import axes
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
        if cache is not None:
            return self._decode(x_BTD, mask, turn, cache)

        def body(x_BTD, layer):
            block, key = layer
            return block(x_BTD, mask, turn, key)[0], None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=_POLICIES[self.remat], prevent_cse=False)
        keys = None if key is None else jax.random.split(key, self.num_layers)
        unroll = min(self.unroll or (self.num_layers if axes.platform() == "cpu" else 1), self.num_layers)
        x_BTD, _ = jax.lax.scan(body, x_BTD, (self.blocks, keys), unroll=unroll)
        return x_BTD, None

    def _decode(self, x_BTD, mask, turn, cache):
        """Layer after layer: a scan would copy the caches of all layers at each of them."""
        for index in range(self.num_layers):
            x_BTD, cache = self._layer(index)(x_BTD, mask, turn, None, cache, index)
        return x_BTD, cache

    def _layer(self, index: int) -> Block:
        unstacked = isinstance(self.blocks, nnx.List)
        return self.blocks[index] if unstacked else jax.tree.map(lambda w: w[index], self.blocks)

    def unstack(self) -> None:
        """Give each layer arrays of its own: for a loop of many steps, which then cuts the stack once, before it."""
        self.blocks = nnx.List([self._layer(index) for index in range(self.num_layers)])
