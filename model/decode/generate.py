"""generate: continue a batch of prompts; prefill and cached decoding in one compiled loop.

Runs on the mesh that is set: rows over data and fsdp, heads and vocabulary over tensor. A program serves every batch of
as many rows whose prompts and continuations fall into the same buckets of length.

Left out: text (the caller's tokenizer), requests that come and go while others run.

Dims: B rows, P padded prompt length, N new tokens, V vocabulary, E tokens that end a row.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import axes
from model.adapt import bank
from model.architectures import Source
from model.config import ModelConfig
from model.decode.cache import KVCache
from model.decode.sampling import Settings, sample
from model.platforms import table
from model.roles import Role, role_of
from model.weights import Frozen, is_variable

_SMALLEST_BUCKET = 32
# What computes in float32 whatever the model's dtype is.
_IN_FLOAT32 = (Role.NORM, Role.ROUTER, Role.GATE, Role.CORRECTION, Role.DISTANCE)


class Generated(NamedTuple):
    tokens: np.ndarray  # int32 [B, N]: what follows each prompt; past a row's length, 0
    lengths: np.ndarray  # int32 [B]: how many of them count, the one that ended the row included


def generate(
    model,
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    max_new_tokens: int,
    settings: Settings = Settings(),  # noqa: B008 (immutable)
    eos_id: int | Sequence[int] | None = None,
    vocab_size: int | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    adapters: Sequence[int] | None = None,
) -> Generated:
    """Continue each prompt by up to `max_new_tokens` tokens.

    Args:
      model: a Decoder or EncoderDecoder.
      prompts: token ids, of any lengths; an encoder-decoder's usually are one start token each.
      key: a random key. A row's tokens depend on it, the row's number and its prompt, not on the other rows.
      settings: how tokens are drawn, see sampling.py; greedy by default.
      eos_id: the token, or any of the tokens, that end a row; the loop ends early when every row has ended. None: rows
        never end.
      vocab_size: tokens from this id on (rows that only pad the table) are never drawn. None: the model's.
      sources: what the encoder of an encoder-decoder reads, token ids for each prompt.
      adapters: of a model with several (adapt/bank.py), the number of each prompt's; -1: the base alone.

    Raises:
      ValueError: no or empty prompts, ids outside the vocabulary, or a prompt and its continuation longer than the
        model's context.
    """
    config = model.config
    vocab_size = vocab_size or config.vocab_size
    check(prompts, max_new_tokens, vocab_size, config, sources, model.inputs.tokens.rows)
    # Rows are added until the mesh divides them: of length 0, so they have ended before they begin.
    rows = -(-len(prompts) // axes.parts("batch")) * axes.parts("batch")
    starts, read = _padded(prompts, rows), None if sources is None else _padded(sources, rows)
    if adapters is not None:
        if len(adapters) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(adapters)} adapters; give each prompt one")
        model = bank.chosen(model, [*adapters, *[-1] * (rows - len(prompts))])
    limit, eos_E = np.int32(max_new_tokens), np.atleast_1d(np.asarray(-1 if eos_id is None else eos_id, np.int32))
    run = functools.partial(_generate, slots=_bucket(max_new_tokens), vocab_size=vocab_size)
    tokens_BN, lengths_B = run(model, starts, read, key, limit, settings, eos_E)
    return Generated(*(np.asarray(a)[: len(prompts)] for a in (tokens_BN[:, :max_new_tokens], lengths_B)))


@functools.partial(jax.jit, static_argnames=("slots", "vocab_size"))
def _generate(model, starts, read, key, limit, settings, eos_E, *, slots, vocab_size):
    model = _prepare(model)
    b, p = starts[0].shape
    lengths_B = axes.place(starts[1], "batch")
    memory = {} if read is None else {"memory": model.remember(Source(*_segmented(*read)))}
    rows_B = axes.place(jnp.arange(b), "batch")
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)

    def forward(cache, tokens_BT, segments_BT, positions_BT):
        """The logits [B, V] that follow the last of T tokens, and the cache with all of them."""
        cache, mask = cache.admit(segments_BT, positions_BT)
        hidden = model(tokens_BT, segments_BT, positions_BT, mask=mask, cache=cache, **memory)
        last_B1D = axes.place(hidden.x_BTD, "batch", None, None)[:, -1:]
        logits_BV = axes.place(model.output(last_B1D).logits()[:, 0], "batch", None)
        return logits_BV[:, :vocab_size], hidden.cache.advance(tokens_BT.shape[1])

    def draw(logits_BV, step):
        return sample(logits_BV, jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, step), settings)

    def ends(token_B):
        return (token_B[:, None] == eos_E).any(-1)

    def write(out_BN, token_B, step):
        return jax.lax.dynamic_update_slice_in_dim(out_BN, token_B[:, None], step, axis=1)

    def unfinished(state):
        step, _, _, _, _, ended_B = state
        return (step < limit) & ~ended_B.all()

    def body(state):
        step, cache, token_B, out_BN, counts_B, ended_B = state
        ones_B1 = jnp.ones_like(token_B)[:, None]
        logits_BV, cache = forward(cache, token_B[:, None], ones_B1, (lengths_B + step - 1)[:, None])
        token_B = jnp.where(ended_B, 0, draw(logits_BV, step))
        counts_B += ~ended_B
        return step + 1, cache, token_B, write(out_BN, token_B, step), counts_B, ended_B | ends(token_B)

    cache = KVCache.create(model.config, b, p + slots)
    logits_BV, cache = forward(cache, *_segmented(*starts))
    empty_B = lengths_B == 0
    token_B = jnp.where(empty_B, 0, draw(logits_BV, 0))
    out_BN = write(jnp.zeros((b, slots), jnp.int32, out_sharding=axes.out("batch", None)), token_B, 0)
    counts_B = (~empty_B).astype(jnp.int32)
    state = (jnp.int32(1), cache, token_B, out_BN, counts_B, empty_B | ends(token_B))
    _, _, _, out_BN, counts_B, _ = jax.lax.while_loop(unfinished, body, state)
    # On every device, so that every process of a pod can read them.
    return axes.place(out_BN, None, None), axes.place(counts_B, None)


def _padded(sequences, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [rows, P], lengths [rows]) of sequences, padded on the left: the last column is the last of each."""
    lengths_B = np.zeros(rows, np.int32)
    lengths_B[: len(sequences)] = [len(ids) for ids in sequences]
    tokens_BP = np.zeros((rows, _bucket(int(lengths_B.max()))), np.int32)
    for row, ids in enumerate(sequences):
        tokens_BP[row, tokens_BP.shape[1] - len(ids) :] = ids
    return tokens_BP, lengths_B


def _segmented(tokens_BP, lengths_B):
    """(tokens, segments, positions) as a model reads them."""
    lengths_B, p = axes.place(lengths_B, "batch"), tokens_BP.shape[1]
    places_BP = axes.place(jnp.arange(p, dtype=jnp.int32)[None], None, None) - (p - lengths_B)[:, None]
    segments_BP, positions_BP = (places_BP >= 0).astype(jnp.int32), jnp.maximum(places_BP, 0)
    return axes.place(tokens_BP, "batch", None), segments_BP, positions_BP


def _prepare(model):
    """The model with what each step would repeat done once, before the loop."""
    model = narrowed(model, jnp.dtype(model.config.dtype))
    if table.here().unstacked:
        model.stack.unstack()
    return model


def narrowed(model, dtype):
    """The model in the dtype that it computes in, but for what computes in float32 in any case."""

    def cast(variable):
        if not isinstance(variable, nnx.Param | Frozen):  # quantized
            return variable
        # Of biases those of the residual stream, whose dims are called as a norm's.
        of_stream = role_of(variable) is Role.BIAS and variable.get_metadata("out_sharding")[-1] == "norm"
        wide = of_stream or role_of(variable) in _IN_FLOAT32
        return variable if wide else variable.replace(variable[...].astype(dtype))

    return jax.tree.map(cast, model, is_leaf=is_variable)


def check(
    prompts,
    max_new_tokens: int | Sequence[int],
    vocab_size: int,
    config: ModelConfig,
    sources=None,
    known: int = 0,
) -> None:
    """What `generate` refuses, for a caller who wants to know before anything compiles.

    Args:
      max_new_tokens: of all prompts, or of each.
      known: how many ids have a vector; 0: as many as the vocabulary has.

    Raises:
      ValueError: see `generate`.
    """
    known = known or config.vocab_size
    if config.architecture == "encoder" or config.head != "language_model":
        raise ValueError(
            f"the model is an {config.architecture} with the head {config.head}; only models with a decoder and the "
            "head language_model continue text"
        )
    if (config.architecture == "encoder_decoder") != (sources is not None):
        raise ValueError("an encoder-decoder, and no other model, needs sources: a text to read for each prompt")
    if sources is not None and (len(sources) != len(prompts) or not all(map(len, sources))):
        raise ValueError(f"{len(prompts)} prompts and {len(sources)} sources; each prompt needs one, not empty")
    if not len(prompts):
        raise ValueError("there is no prompt to continue")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    if min(limits) < 1:
        raise ValueError(f"max_new_tokens is {min(limits)}; it must be at least 1")
    if not 0 < vocab_size <= config.vocab_size:
        raise ValueError(f"vocab_size {vocab_size} does not lie within the model's {config.vocab_size}")
    for what, rows, more in (("prompt", prompts, limits), ("source", sources or (), [0] * len(prompts))):
        for row, (ids, new) in enumerate(zip(rows, more, strict=False)):
            if not len(ids):
                raise ValueError(f"{what} {row} is empty; begin it with a special token, or with text")
            if min(ids) < 0 or max(ids) >= known:
                raise ValueError(f"{what} {row} has ids from {min(ids)} to {max(ids)}, but the vocabulary has {known}")
            if len(ids) + new > config.max_length:
                raise ValueError(
                    f"{what} {row} has {len(ids)} tokens, with {new} new ones {len(ids) + new}, but the model's "
                    f"context is {config.max_length} (model.max_length)"
                )


def _bucket(length: int) -> int:
    """A length with some room, so that few lengths compile: four steps a doubling, at most a quarter in vain."""
    step = max(_SMALLEST_BUCKET, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step
