"""From hidden states to logits: the output layer of a causal or masked language model.

Dims: B batch, T length, D embed, E features of the table, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.layers import Embedding, Linear, Norm, activate
from model.roles import Role
from model.weights import einsum, param


class Output(NamedTuple):
    """Everything logits are computed from. Losses compute them chunk by chunk, because all of them need much memory."""

    x_BTE: jax.Array  # features, in the compute dtype
    table: nnx.Param  # [V, E]
    bias: nnx.Param | None  # [V]
    softcap: float  # logits become cap * tanh(logit / cap); 0: no cap

    def logits(self) -> jax.Array:
        """Returns the logits [B, T, V] in float32."""
        logits = einsum("BTE,VE->BTV", self.x_BTE, self.table, ("batch", "length", "vocab")).astype(jnp.float32)
        if self.bias is not None:
            logits = logits + self.bias[...].astype(jnp.float32)
        return self.softcap * jnp.tanh(logits / self.softcap) if self.softcap else logits


class Unembedding(nnx.Module):
    """The output layer: a table (the embedding's if tied), bias, scale and cap.

    A masked language model has another layer before them (BERT, arXiv:1810.04805 and its released code).

    Args:
      table: False: only the projection to the table's width, which classification heads use.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, table: bool = True):
        e, masked = config.table_dim, config.head == "masked"
        self.scale, self.softcap = config.logit_scale, config.logit_softcap
        self.activation = config.activation if masked else ""
        wanted = masked or e != config.embed_dim
        self.project = Linear(config, rngs, config.embed_dim, e, bias=masked) if wanted else None
        self.norm = Norm(config, rngs, e) if masked else None
        self.table = None if config.tied or not table else Embedding(config, rngs, config.vocab_size, dim=e).table
        zeros, dtype, biased = nnx.initializers.zeros, jnp.dtype(config.param_dtype), config.output_bias and table
        make_bias = lambda: param(rngs, (config.vocab_size,), ("vocab",), zeros, dtype, role=Role.BIAS)
        self.bias = make_bias() if biased else None

    def __call__(self, x_BTD: jax.Array, tied_table: nnx.Param) -> Output:
        if self.project is not None:
            x_BTD = self.project(x_BTD)
        if self.activation:
            x_BTD = activate(x_BTD, self.activation)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        if self.scale != 1:
            x_BTD = x_BTD * jnp.asarray(self.scale, x_BTD.dtype)
        return Output(x_BTD, tied_table if self.table is None else self.table, self.bias, self.softcap)
