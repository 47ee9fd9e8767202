"""Bottleneck adapters: small layers inside each block, close to the identity at initialization.

    Houlsby (arXiv:1902.00751)   after attention and after feed-forward:  y + up(f(down(y) + b)) + b
    Pfeiffer (arXiv:2005.00247)  after feed-forward only; it reads the stream x + y (after the norm in post-norm
                                 blocks), and its output is added to y

y is what a part of the block adds to the stream x. Placement and initialization follow AdapterHub's `adapters`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.layers import ACTIVATIONS, RESIDUAL, activate, add_bias
from model.roles import Role
from model.stack.pipeline import spread
from model.stack.transformer import Block
from model.weights import einsum, param

_INIT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """Settings of bottleneck adapters.

    Args:
      placement: 'houlsby' or 'pfeiffer'.
      reduction: the stream's width divided by the bottleneck's.

    Raises:
      ValueError: a field has an impossible value.
    """

    placement: str = "pfeiffer"
    reduction: int = 16
    activation: str = "relu"

    def __post_init__(self):
        if self.placement not in ("houlsby", "pfeiffer"):
            raise ValueError(f"placement is {self.placement!r}; choose from houlsby, pfeiffer")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; choose from {', '.join(ACTIVATIONS)}")
        if type(self.reduction) is not int or self.reduction < 1:
            raise ValueError(f"reduction is {self.reduction!r}; it must be a whole number of at least 1")

    def insert(self, model, key: jax.Array):
        """Inserts new adapters into each layer; returns the model.

        Raises:
          ValueError: the bottleneck would have no features.
        """
        if model.config.embed_dim < self.reduction:
            raise ValueError(f"reduction {self.reduction} of {model.config.embed_dim} features leaves none")
        blocks = (leaf for leaf in jax.tree.leaves(model, is_leaf=_is_block) if _is_block(leaf))
        for number, block in enumerate(blocks):
            rngs = nnx.Rngs(jax.random.fold_in(key, number)).split(block.attention_norm.scale.shape[0])
            make = nnx.vmap(
                lambda rngs: Adapter(model.config, rngs, self), transform_metadata={nnx.PARTITION_NAME: "layers"}
            )
            if self.placement == "houlsby":
                block.attention_adapter = spread(make(rngs))
            block.feed_forward_adapter = spread(make(rngs))
        return model


def without(model):
    """Returns the model without its bottleneck adapters; other arrays are the same."""
    model = jax.tree.map(lambda leaf: leaf, model)  # new modules, so that those of `model` keep their adapters
    for block in (leaf for leaf in jax.tree.leaves(model, is_leaf=_is_block) if _is_block(leaf)):
        block.attention_adapter = block.feed_forward_adapter = None
    return model


class Adapter(nnx.Module):
    """Down-projection, activation, up-projection: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, settings: Bottleneck):
        d, r = config.embed_dim, config.embed_dim // settings.reduction
        init, zeros = nnx.initializers.normal(_INIT_STD), nnx.initializers.zeros
        self.reads_stream, self.activation = settings.placement == "pfeiffer", settings.activation
        matrix = lambda shape, *names: param(rngs, shape, names, init, jnp.float32, role=Role.ADAPTER, inputs=names[:1])
        bias = lambda dim: param(rngs, (dim,), ("norm",), zeros, jnp.float32, role=Role.BIAS)
        self.down, self.down_bias = matrix((d, r), "embed", "rank"), bias(r)
        self.up, self.up_bias = matrix((r, d), "rank", "embed"), bias(d)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTR = add_bias(einsum("BTD,DR->BTR", x_BTD, self.down, ("batch", "stream", "rank")), self.down_bias)
        x_BTR = activate(x_BTR, self.activation)
        return add_bias(einsum("BTR,RD->BTD", x_BTR, self.up, RESIDUAL), self.up_bias)


def _is_block(leaf) -> bool:
    return isinstance(leaf, Block)
