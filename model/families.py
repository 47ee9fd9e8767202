"""The architectures: what stands before and after the Stack."""

import jax
from flax import nnx

from model import masks
from model.config import ModelConfig
from model.layers import Embedding, Norm, dropout
from model.positions import rotation
from model.transformer import Stack


class Decoder(nnx.Module):
    """A causal language model: tokens -> hidden states, and hidden states -> logits.

    The two are apart because a loss must not hold the logits of a whole batch (train/losses.py).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config, rngs, config.vocab_size)
        learned = config.position == "learned"
        self.positions = Embedding(config, rngs, config.max_length, "positions") if learned else None
        self.stack = Stack(config, rngs)
        self.norm = Norm(config, rngs)
        self.unembedding = None if config.tied else Embedding(config, rngs, config.vocab_size)

    def __call__(self, tokens_BT, segments_BT=None, positions_BT=None, *, key=None, mask=None, cache=None):
        """Hidden states after the last norm, [B, T, D] in the compute dtype.

        Args:
          tokens_BT: int32 ids.
          segments_BT: int32 document of each token in its row, 0 for padding; absent: one document a row.
          positions_BT: int32 position of each token in its document.
          key: random key for dropout; None (evaluation): no dropout.
          mask, cache: of cached decoding (decode/generate.py), where the result is (hidden states, cache).
        """
        if segments_BT is None:
            segments_BT, positions_BT = masks.default_segments(tokens_BT)
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = self.embedding(tokens_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_BT)
        x_BTD = dropout(x_BTD, self.config.dropout, keys[0])
        rotary = self.config.position == "rotary"
        turn = rotation(positions_BT, self.config.head_dim, self.config.rope_theta) if rotary else None
        mask = masks.packed(segments_BT, positions_BT) if mask is None else mask
        x_BTD, cache_out = self.stack(x_BTD, mask, turn, keys[1], cache)
        x_BTD = self.norm(x_BTD)
        return x_BTD if cache is None else (x_BTD, cache_out)

    @property
    def output(self) -> Embedding:
        """The layer whose table turns hidden states into logits: of its own, or the embedding (tied)."""
        return self.embedding if self.unembedding is None else self.unembedding

    def logits(self, tokens_BT, segments_BT=None, positions_BT=None) -> jax.Array:
        """Next-token scores, [B, T, V] in float32."""
        return self.output.logits(self(tokens_BT, segments_BT, positions_BT))
