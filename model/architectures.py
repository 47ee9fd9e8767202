"""The architectures: what comes before and after the Stack.

All of them map tokens to hidden states, and hidden states to an `Output`, from which logits or a loss are computed. A
loss uses the `Output`, because the logits of a whole batch would need too much memory (train/losses.py).

Dims: B batch, T length, S source length, D embed, V vocabulary, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.attention import masks
from model.attention.grouped import Context, Memory
from model.attention.positions import rotation
from model.config import ModelConfig
from model.experts.router import RouterStats
from model.inputs import Inputs
from model.layers import HIDDEN, Linear, Norm
from model.output import Output, Unembedding
from model.stack.taps import KINDS, Tap, Tapped
from model.stack.transformer import Stack, concatenated


class Source(NamedTuple):
    """The encoder's input, int32 [B, S] each."""

    tokens_BS: jax.Array
    segments_BS: jax.Array
    positions_BS: jax.Array


class Hidden(NamedTuple):
    x_BTD: jax.Array  # the hidden states after the last norm, in the compute dtype
    cache: object = None  # cached decoding only (decode/cache.py)
    router: RouterStats | None = None  # with a leading dim of sparse layers


class Decoder(nnx.Module):
    """A causal language model, or, with another head, a classifier of texts or tokens."""

    causal, cross = True, False

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.inputs = Inputs(config, rngs)
        self.stack = Stack(config, rngs, causal=self.causal, cross=self.cross)
        self.norm = Norm(config, rngs) if config.final_norm else None
        scores = config.head in ("language_model", "masked")
        labels, bias = config.head in ("sequence", "token"), config.head == "token" or not self.causal
        # OPT also computes classes from the stream projected to its narrow table's width; ALBERT does not.
        narrow = labels and self.causal and config.table_dim != config.embed_dim
        self.unembedding = Unembedding(config, rngs, table=scores) if scores or narrow else None
        width = config.table_dim if narrow else config.embed_dim
        self.classifier = Linear(config, rngs, width, config.num_labels, bias=bias) if labels else None

    def __call__(
        self,
        tokens_BT,
        segments_BT=None,
        positions_BT=None,
        *,
        types_BT=None,
        key=None,
        mask=None,
        cache=None,
        tap: Tap | None = None,
    ):
        """Returns the hidden states of each token.

        Args:
          tokens_BT: int32 ids.
          segments_BT: int32 document number of each token in its row, 0 for padding; None: one document per row.
          positions_BT: int32 position of each token in its document.
          types_BT: int32 token types (BERT: first or second sentence); None: 0. Models with one type (RoBERTa) or none
            ignore them.
          key: random key for dropout; None (evaluation): no dropout.
          mask, cache: for cached decoding (decode/generate.py).
          tap: set by `tapped`.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD, context = self._enter(tokens_BT, segments_BT, positions_BT, types_BT, keys[0], mask)
        x_BTD, *rest = self.stack(x_BTD, context._replace(tap=tap), keys[1], cache)
        return Hidden(_normed(self.norm, x_BTD, tap), *rest)

    def tapped(
        self, tokens_BT, segments_BT=None, positions_BT=None, *, hidden=(), attention=(), **others
    ) -> tuple[Hidden, Tapped]:
        """Returns the result of a call, and hidden states and attention probabilities of chosen layers.

        Args:
          hidden: which states of the residual stream: 0 enters the first layer, n leaves the n-th one, and the last one
            is taken after the final norm (like transformers' hidden_states). Negative numbers count from the end.
          attention: layers whose attention probabilities to return, from 0 or from the end.
          others: as in a call.

        Raises:
          ValueError: a number is out of range, the mesh has stages, or a cache is given.
        """
        tap = Tap(self.stack.depth, hidden=hidden, attention=attention)
        found = self(tokens_BT, segments_BT, positions_BT, tap=tap, **others)
        return found, Tapped(tap.result("hidden"), tap.result("attention"))

    def _enter(self, tokens_BT, segments_BT, positions_BT, types_BT=None, key=None, mask=None):
        if (segments_BT is None) != (positions_BT is None):
            raise ValueError("give both segments and positions of the tokens, or neither")
        if segments_BT is None:
            segments_BT, positions_BT = masks.default_segments(tokens_BT)
        mask = masks.packed(segments_BT, positions_BT) if mask is None else mask
        return self.inputs(tokens_BT, positions_BT, types_BT, key), context(self.config, mask, positions_BT)

    def output(self, x_BTD) -> Output:
        """Returns the `Output` for hidden states [B, T, D], from which a loss or logits are computed.

        Raises:
          ValueError: the model's head scores no tokens.
        """
        if self.unembedding is None:
            raise ValueError(f"the model has no output layer; its head is {self.config.head}")
        return self.unembedding(x_BTD, self.inputs.tokens.table)

    def classes(self, x_BTD) -> jax.Array:
        """Returns class scores at every token, float32 [B, T, C] (heads 'sequence', 'token').

        As in transformers, a decoder's scores of a whole text are those at its last token, an encoder's those at its
        first one.

        Raises:
          ValueError: the model's head scores no classes.
        """
        if self.classifier is None:
            raise ValueError(f"the model has no classifier; its head is {self.config.head}")
        x_BTD = x_BTD.astype(jnp.float32)
        if self.unembedding is not None and self.unembedding.project is not None:
            x_BTD = self.unembedding.project(x_BTD)
        return self.classifier(x_BTD)

    def logits(self, tokens_BT, segments_BT=None, positions_BT=None, **others) -> jax.Array:
        """Returns the logits of every token, float32 [B, T, V]; arguments as in a call."""
        return self.output(self(tokens_BT, segments_BT, positions_BT, **others).x_BTD).logits()


class Encoder(Decoder):
    """A bidirectional model for masked tokens, classes, or one vector per text."""

    causal = False

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        d, pooled = config.embed_dim, config.head in ("sequence", "none")
        self.pooler = Linear(config, rngs, d, d, bias=True) if pooled else None

    def pooled(self, x_BTD) -> jax.Array:
        """Returns pooled states [B, T, D]; the one at a text's first token is the text's vector (BERT's released code).

        It pools every token, because packed texts start anywhere in a row.

        Raises:
          ValueError: the model's head has no pooler.
        """
        if self.pooler is None:
            raise ValueError(f"the model has no pooler; its head is {self.config.head}")
        return jnp.tanh(self.pooler(x_BTD))

    def classes(self, x_BTD) -> jax.Array:
        """Returns class scores at every token, as in Decoder, from pooled states if there is a pooler."""
        return super().classes(x_BTD if self.pooler is None else self.pooled(x_BTD))


class EncoderDecoder(Decoder):
    """A decoder that also attends to the output of an encoder, which is a separate stack (arXiv:1706.03762).

    Both share the embedding table (T5, arXiv:1910.10683).
    """

    cross = True

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        layers = config.encoder_layers or config.num_layers
        self.encoder = Stack(config, rngs, causal=False, num_layers=layers)
        self.encoder_norm = Norm(config, rngs) if config.final_norm else None

    def __call__(
        self,
        tokens_BT,
        segments_BT=None,
        positions_BT=None,
        *,
        types_BT=None,
        key=None,
        mask=None,
        cache=None,
        tap: Tap | None = None,
        source: Source | None = None,
        memory: Memory | None = None,
        encoder_tap: Tap | None = None,
    ):
        """Returns the hidden states of the decoder's tokens.

        Args:
          source: the encoder's input; a token attends to the source tokens with its own segment number.
          memory: the result of `encode` or `remember`, instead of `source`.
          others: as in Decoder.

        Raises:
          ValueError: neither source nor memory is given.
        """
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        encoded = None
        if memory is None:
            if source is None:
                raise ValueError("an encoder-decoder needs a source to read, or the memory that `encode` made of one")
            memory, encoded = self.encode(source, keys[2:], encoder_tap)
        x_BTD, context = self._enter(tokens_BT, segments_BT, positions_BT, types_BT, keys[0], mask)
        x_BTD, cache, router = self.stack(x_BTD, context._replace(memory=memory, tap=tap), keys[1], cache)
        routers = [part for part in (encoded, router) if part is not None]
        return Hidden(_normed(self.norm, x_BTD, tap), cache, concatenated(routers))

    def tapped(
        self,
        tokens_BT,
        segments_BT=None,
        positions_BT=None,
        *,
        hidden=(),
        attention=(),
        source: Source | None = None,
        cross=(),
        encoder_hidden=(),
        encoder_attention=(),
        **others,
    ) -> tuple[Hidden, Tapped]:
        """Returns the result of a call and what Decoder.tapped does, also for cross-attention and the encoder.

        Args:
          cross: decoder layers whose attention to the source to return.
          encoder_hidden, encoder_attention: like `hidden` and `attention`, for the encoder.
          others: as in Decoder.
        """
        if source is None and (encoder_hidden or encoder_attention):
            raise ValueError("states of the encoder need a source that it reads, not the memory of an earlier call")
        tap = Tap(self.stack.depth, hidden=hidden, attention=attention, cross=cross)
        encoder = Tap(self.encoder.depth, hidden=encoder_hidden, attention=encoder_attention)
        found = self(tokens_BT, segments_BT, positions_BT, source=source, tap=tap, encoder_tap=encoder, **others)
        of_encoder = (encoder.result(kind) for kind in ("hidden", "attention"))
        return found, Tapped(*map(tap.result, KINDS), *of_encoder)

    def encode(self, source: Source, keys=(None, None), tap: Tap | None = None) -> tuple[Memory, RouterStats | None]:
        """Runs the encoder; returns its memory and router statistics. `keys`: random keys of its inputs and layers."""
        x_BSD, context = self._enter(*source, key=keys[0])
        x_BSD, _, router = self.encoder(x_BSD, context._replace(tap=tap), keys[1])
        return Memory(_normed(self.encoder_norm, x_BSD, tap), *source[1:]), router

    def remember(self, source: Source) -> Memory:
        """Returns the memory for cached decoding, with the cross-attention keys and values of each layer."""
        memory, _ = self.encode(source)
        return memory._replace(keys=tuple(layer.cross.keys(memory.x_BSD, None) for layer in self.stack.layers()))


def _normed(norm: Norm | None, x_BTD, tap: Tap | None):
    x_BTD = axes.place(x_BTD if norm is None else norm(x_BTD), *HIDDEN)
    if tap is not None:
        tap.left(x_BTD)
    return x_BTD


def context(config: ModelConfig, mask: masks.Mask, positions_BT) -> Context:
    """Returns the context that all layers of a stack share."""
    turned = config.latent.rope_dim if config.latent else config.head_dim
    turns = {
        kind: rotation(positions_BT, turned, config.rope, local=kind == "local")
        if config.position == "rotary"
        else None
        for kind in dict.fromkeys(config.attention_pattern)
    }
    return Context(mask, turns)


def make(config: ModelConfig, rngs: nnx.Rngs):
    """Makes the model of a config."""
    return _ARCHITECTURES[config.architecture](config, rngs)


_ARCHITECTURES = {"decoder": Decoder, "encoder": Encoder, "encoder_decoder": EncoderDecoder}
