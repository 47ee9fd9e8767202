"""The architectures: what stands before and after the Stack.

All of them turn tokens into hidden states, and hidden states into an `Output`, from which logits or a loss are made: a
loss must not hold the logits of a whole batch (train/losses.py).

Dims: B batch, T length, S length of an encoder's rows, D embed, V vocabulary, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model import masks
from model.attention import Context
from model.config import ModelConfig
from model.layers import Embedding, Linear, Norm, dropout
from model.output import Output, Unembedding
from model.positions import rotation
from model.transformer import Stack


class Hidden(NamedTuple):
    x_BTD: jax.Array  # the hidden states after the last norm, in the compute dtype
    cache: object = None  # of cached decoding (decode/cache.py)


class Inputs(nnx.Module):
    """Token ids -> the residual stream: the table, positions and token types, norm, projection, dropout."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        e = config.table_dim
        self.scale, self.offset, self.dropout = config.embedding_scale, config.position_offset, config.dropout
        self.tokens = Embedding(config, rngs, config.vocab_size, dim=e)
        rows = config.max_length + config.position_offset
        # Where the table is narrow, ALBERT's positions are as narrow as it and OPT's are added behind the projection.
        self.positions_first = config.embedding_norm
        width = e if self.positions_first else config.embed_dim
        self.positions = Embedding(config, rngs, rows, "positions", width) if config.position == "learned" else None
        self.types = Embedding(config, rngs, config.token_types, "positions", e) if config.token_types else None
        self.norm = Norm(config, rngs, e) if config.embedding_norm else None
        narrow = e != config.embed_dim
        self.project = Linear(config, rngs, e, config.embed_dim, bias=config.embedding_norm) if narrow else None

    def __call__(self, tokens_BT, positions_BT, types_BT=None, key=None):
        x_BTD = self.tokens(tokens_BT)
        if self.scale != 1:
            x_BTD = x_BTD * jnp.asarray(self.scale, x_BTD.dtype)
        if self.types is not None:
            x_BTD = x_BTD + self.types(jnp.zeros_like(tokens_BT) if types_BT is None else types_BT)
        places = lambda: self.positions(positions_BT + self.offset)
        if self.positions is not None and self.positions_first:
            x_BTD = x_BTD + places()
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        if self.project is not None:
            x_BTD = self.project(x_BTD)
        if self.positions is not None and not self.positions_first:
            x_BTD = x_BTD + places()
        return dropout(x_BTD, self.dropout, key)


class Decoder(nnx.Module):
    """A causal language model."""

    causal = True

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.inputs = Inputs(config, rngs)
        self.stack = Stack(config, rngs, causal=self.causal)
        self.norm = Norm(config, rngs) if config.final_norm else None
        scores = config.head in ("language_model", "masked")
        self.unembedding = Unembedding(config, rngs) if scores else None

    def __call__(
        self, tokens_BT, segments_BT=None, positions_BT=None, *, types_BT=None, key=None, mask=None, cache=None
    ):
        """Hidden states of each token.

        Args:
          tokens_BT: int32 ids.
          segments_BT: int32 document of each token in its row, 0 for padding; absent: one document a row.
          positions_BT: int32 position of each token in its document.
          types_BT: int32 token types (BERT: first or second sentence); absent: 0.
          key: random key for dropout; None (evaluation): no dropout.
          mask, cache: of cached decoding (decode/generate.py).
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD, context = self._enter(tokens_BT, segments_BT, positions_BT, types_BT, keys[0], mask)
        x_BTD, cache = self.stack(x_BTD, context, keys[1], cache)
        return Hidden(self._leave(x_BTD), cache)

    def _enter(self, tokens_BT, segments_BT, positions_BT, types_BT, key, mask):
        if segments_BT is None:
            segments_BT, positions_BT = masks.default_segments(tokens_BT)
        mask = masks.packed(segments_BT, positions_BT) if mask is None else mask
        return self.inputs(tokens_BT, positions_BT, types_BT, key), context(self.config, mask, positions_BT)

    def _leave(self, x_BTD):
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def output(self, x_BTD) -> Output:
        """What a loss or `logits` reads: from hidden states to scores of every token."""
        return self.unembedding(x_BTD, self.inputs.tokens.table)

    def logits(self, tokens_BT, segments_BT=None, positions_BT=None, types_BT=None) -> jax.Array:
        """Scores of every token, [B, T, V] in float32."""
        return self.output(self(tokens_BT, segments_BT, positions_BT, types_BT=types_BT).x_BTD).logits()

    def states(self, tokens_BT, segments_BT=None, positions_BT=None, types_BT=None) -> list[jax.Array]:
        """The residual stream before the first layer and after each, [B, T, D]; the last one after the last norm."""
        x_BTD, context = self._enter(tokens_BT, segments_BT, positions_BT, types_BT, None, None)
        states = [x_BTD]
        for layer in self.stack.layers():
            states.append(layer(states[-1], context._replace(bias=self.stack.bias))[0])
        return [*states[:-1], self._leave(states[-1])]


class Encoder(Decoder):
    """Every token sees every other of its document: masked tokens, classes, or one vector for a text."""

    causal = False

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        d, c = config.embed_dim, config.num_labels
        pooled, labels = config.head in ("sequence", "none"), config.head in ("sequence", "token")
        self.pooler = Linear(config, rngs, d, d, bias=True) if pooled else None
        self.classifier = Linear(config, rngs, d, c, bias=True) if labels else None

    def pooled(self, x_BTD) -> jax.Array:
        """One vector for each row, [B, D]: of its first token, through the pooler (BERT, its released code)."""
        return jnp.tanh(self.pooler(x_BTD[:, :1]))[:, 0]

    def classes(self, x_BTD) -> jax.Array:
        """Scores of classes in float32: [B, C] of rows (head 'sequence'), [B, T, C] of tokens ('token')."""
        x = self.pooled(x_BTD)[:, None] if self.pooler is not None else x_BTD
        scores = self.classifier(x).astype(jnp.float32)
        return scores[:, 0] if self.pooler is not None else scores


def context(config: ModelConfig, mask: masks.Mask, positions_BT, **memory) -> Context:
    """What the layers of a stack share."""
    turns = {
        kind: rotation(positions_BT, config.head_dim, config.rope, local=kind == "local")
        if config.position == "rotary"
        else None
        for kind in dict.fromkeys(config.attention_pattern)
    }
    return Context(mask, turns, **memory)


def make(config: ModelConfig, rngs: nnx.Rngs):
    """The model of a config."""
    return _ARCHITECTURES[config.architecture](config, rngs)


_ARCHITECTURES = {"decoder": Decoder, "encoder": Encoder}
