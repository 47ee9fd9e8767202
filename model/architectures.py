"""The architectures: what stands before and after the Stack.

All of them turn tokens into hidden states, and hidden states into an `Output`, from which logits or a loss are made: a
loss must not hold the logits of a whole batch (train/losses.py).

Dims: B batch, T length, S length of an encoder's rows, D embed, V vocabulary, C classes.
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
    """Rows that an encoder reads, int32 [B, S] each."""

    tokens_BS: jax.Array
    segments_BS: jax.Array
    positions_BS: jax.Array


class Hidden(NamedTuple):
    x_BTD: jax.Array  # the hidden states after the last norm, in the compute dtype
    cache: object = None  # of cached decoding (decode/cache.py)
    router: RouterStats | None = None  # of sparse layers, their number leading


class Decoder(nnx.Module):
    """A causal language model; or, with another head, scores of classes at every token."""

    causal, cross = True, False

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.inputs = Inputs(config, rngs)
        self.stack = Stack(config, rngs, causal=self.causal, cross=self.cross)
        self.norm = Norm(config, rngs) if config.final_norm else None
        scores = config.head in ("language_model", "masked")
        labels, bias = config.head in ("sequence", "token"), config.head == "token" or not self.causal
        # OPT's classes, too, are of the stream projected to the width of a narrow table; ALBERT's are not.
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
        """Hidden states of each token.

        Args:
          tokens_BT: int32 ids.
          segments_BT: int32 document of each token in its row, 0 for padding; absent: one document a row.
          positions_BT: int32 position of each token in its document.
          types_BT: int32 token types (BERT: first or second sentence); absent: 0. A model with one type alone
            (RoBERTa), or none, takes no notice of them.
          key: random key for dropout; None (evaluation): no dropout.
          mask, cache: of cached decoding (decode/generate.py).
          tap: of `tapped`.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD, context = self._enter(tokens_BT, segments_BT, positions_BT, types_BT, keys[0], mask)
        x_BTD, *rest = self.stack(x_BTD, context._replace(tap=tap), keys[1], cache)
        return Hidden(_normed(self.norm, x_BTD, tap), *rest)

    def tapped(
        self, tokens_BT, segments_BT=None, positions_BT=None, *, hidden=(), attention=(), **others
    ) -> tuple[Hidden, Tapped]:
        """What a call returns, and what happened inside, of chosen layers.

        Args:
          hidden: numbers of states of the residual stream: 0 enters the first layer, n leaves the n-th one, the last
            one after the last norm (transformers' hidden_states); negative ones count from the back.
          attention: numbers of layers, from 0 or from the back: their attention probabilities.
          The others are those of a call.

        Raises:
          ValueError: a number that there is not, a mesh with stages, or a cache.
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
        """What a loss or `logits` reads: from hidden states to scores of every token."""
        return self.unembedding(x_BTD, self.inputs.tokens.table)

    def classes(self, x_BTD) -> jax.Array:
        """Scores of classes at every token, [B, T, C], computed in float32 (heads 'sequence', 'token'). Those of a
        whole text are a decoder's at its last token, an encoder's at its first one, as in transformers."""
        x_BTD = x_BTD.astype(jnp.float32)
        return self.classifier(x_BTD if self.unembedding is None else self.unembedding.project(x_BTD))

    def logits(self, tokens_BT, segments_BT=None, positions_BT=None, **others) -> jax.Array:
        """Scores of every token, [B, T, V] in float32; arguments as those of a call."""
        return self.output(self(tokens_BT, segments_BT, positions_BT, **others).x_BTD).logits()


class Encoder(Decoder):
    """Every token sees every other of its document: masked tokens, classes, or one vector for a text."""

    causal = False

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        d, pooled = config.embed_dim, config.head in ("sequence", "none")
        self.pooler = Linear(config, rngs, d, d, bias=True) if pooled else None

    def pooled(self, x_BTD) -> jax.Array:
        """[B, T, D]: each token through the pooler; that of a text's first token is its vector (BERT, its released
        code). Packed texts begin anywhere in a row, so it is computed for all."""
        return jnp.tanh(self.pooler(x_BTD))

    def classes(self, x_BTD) -> jax.Array:
        """As in Decoder."""
        return super().classes(x_BTD if self.pooler is None else self.pooled(x_BTD))


class EncoderDecoder(Decoder):
    """A decoder that also attends to what an encoder, a stack of its own, made of a source (arXiv:1706.03762).

    Both read the same embedding table (T5, arXiv:1910.10683).
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
        source: Source | None = None,
        memory: Memory | None = None,
        key=None,
        mask=None,
        cache=None,
        tap: Tap | None = None,
        encoder_tap: Tap | None = None,
    ):
        """Hidden states of the decoder's tokens.

        Args:
          source: what the encoder reads; a token sees that part of it which has its own segment number.
          memory: in its place, what `encode` made of it before.
          The others are as in Decoder.
        """
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        encoded = None
        if memory is None:
            memory, encoded = self.encode(source, keys[2:], encoder_tap)
        x_BTD, context = self._enter(tokens_BT, segments_BT, positions_BT, key=keys[0], mask=mask)
        x_BTD, cache, router = self.stack(x_BTD, context._replace(memory=memory, tap=tap), keys[1], cache)
        routers = [part for part in (encoded, router) if part is not None]
        return Hidden(_normed(self.norm, x_BTD, tap), cache, concatenated(routers))

    def tapped(
        self,
        tokens_BT,
        segments_BT=None,
        positions_BT=None,
        *,
        source: Source,
        hidden=(),
        attention=(),
        cross=(),
        encoder_hidden=(),
        encoder_attention=(),
        **others,
    ) -> tuple[Hidden, Tapped]:
        """As in Decoder.

        Args:
          cross: layers of the decoder: their attention to the source.
          encoder_hidden, encoder_attention: of the encoder what `hidden` and `attention` are of the decoder.
        """
        tap = Tap(self.stack.depth, hidden=hidden, attention=attention, cross=cross)
        encoder = Tap(self.encoder.depth, hidden=encoder_hidden, attention=encoder_attention)
        taps = dict(tap=tap, encoder_tap=encoder)
        found = self(tokens_BT, segments_BT, positions_BT, source=source, **taps, **others)
        of_encoder = (encoder.result(kind) for kind in ("hidden", "attention"))
        return found, Tapped(*map(tap.result, KINDS), *of_encoder)

    def encode(self, source: Source, keys=(None, None), tap: Tap | None = None) -> tuple[Memory, RouterStats | None]:
        x_BSD, context = self._enter(*source, key=keys[0])
        x_BSD, _, router = self.encoder(x_BSD, context._replace(tap=tap), keys[1])
        return Memory(_normed(self.encoder_norm, x_BSD, tap), *source[1:]), router

    def remember(self, source: Source) -> Memory:
        """What cached decoding reads: the memory with the keys and values that each layer makes of it."""
        memory, _ = self.encode(source)
        return memory._replace(keys=tuple(layer.cross.keys(memory.x_BSD, None) for layer in self.stack.layers()))


def _normed(norm: Norm | None, x_BTD, tap: Tap | None):
    x_BTD = axes.place(x_BTD if norm is None else norm(x_BTD), *HIDDEN)
    if tap is not None:
        tap.left(x_BTD)
    return x_BTD


def context(config: ModelConfig, mask: masks.Mask, positions_BT) -> Context:
    """What the layers of a stack share."""
    turned = config.latent.rope_dim if config.latent else config.head_dim
    turns = {
        kind: rotation(positions_BT, turned, config.rope, local=kind == "local")
        if config.position == "rotary"
        else None
        for kind in dict.fromkeys(config.attention_pattern)
    }
    return Context(mask, turns)


def make(config: ModelConfig, rngs: nnx.Rngs):
    """The model of a config."""
    return _ARCHITECTURES[config.architecture](config, rngs)


_ARCHITECTURES = {"decoder": Decoder, "encoder": Encoder, "encoder_decoder": EncoderDecoder}
