"""From token ids to the residual stream: everything before the stack.

Dims: B batch, T length, D embed.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.config import ModelConfig
from model.layers import RESIDUAL, Embedding, Linear, Norm, dropout, noisy
from model.roles import Role


class Inputs(nnx.Module):
    """Token ids [B, T] -> residual stream [B, T, D]: embedding, positions, token types, norm, projection, dropout."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        e = config.table_dim
        self.scale, self.offset, self.dropout = config.embedding_scale, config.position_offset, config.dropout
        self.noise = config.embedding_noise
        self.tokens = Embedding(config, rngs, config.vocab_size, dim=e)
        rows = config.max_length + config.position_offset
        # With a narrow table, ALBERT adds narrow positions before the projection, and OPT adds wide ones after it.
        self.positions_first = config.embedding_norm
        width = e if self.positions_first else config.embed_dim
        self.positions = Embedding(config, rngs, rows, Role.POSITION, width) if config.position == "learned" else None
        self.types = Embedding(config, rngs, config.token_types, Role.POSITION, e) if config.token_types else None
        self.norm = Norm(config, rngs, e) if config.embedding_norm else None
        narrow = e != config.embed_dim
        self.project = Linear(config, rngs, e, config.embed_dim, bias=config.embedding_norm) if narrow else None

    def __call__(self, tokens_BT, positions_BT, types_BT=None, key=None):
        x_BTD = self.tokens(tokens_BT)
        if self.noise and key is not None:
            x_BTD = noisy(x_BTD, self.noise, jax.random.fold_in(key, 1))
        if self.scale != 1:
            x_BTD = x_BTD * jnp.asarray(self.scale, x_BTD.dtype)
        if self.types is not None:
            types_BT = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + self.types(jnp.minimum(types_BT, self.types.rows - 1))
        places = lambda: self.positions(positions_BT + self.offset)
        if self.positions is not None and self.positions_first:
            x_BTD = x_BTD + places()
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        if self.project is not None:
            x_BTD = axes.place(self.project(x_BTD), *RESIDUAL)
        if self.positions is not None and not self.positions_first:
            x_BTD = x_BTD + places()
        return dropout(x_BTD, self.dropout, key)
