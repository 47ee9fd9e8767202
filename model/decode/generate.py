"""generate: continues a batch of prompts, with prefill and cached decoding in one compiled program.

It runs on the current mesh: rows over data and fsdp, heads and vocabulary over tensor. One program serves all batches
with the same number of rows whose prompt and continuation lengths fall into the same buckets.

Left out: text (the caller has the tokenizer), and requests that arrive while others run.

Dims: B rows, U rows of different prompts, P padded prompt length, N new tokens, V vocabulary, E tokens that end a row.
"""

import dataclasses
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
from model.decode.sampling import Settings, logprob, sample
from model.experts.moe import MoE
from model.platforms import table
from model.roles import Role, role_of
from model.weights import Frozen, is_variable

_SMALLEST_BUCKET = 32
# Parameters that keep their own dtype, usually float32, whatever dtype the model computes in.
_KEPT = (Role.NORM, Role.ROUTER, Role.GATE, Role.CORRECTION, Role.DISTANCE)


class Generated(NamedTuple):
    tokens: np.ndarray  # int32 [B, N]: the continuation of each prompt; 0 after a row's length
    lengths: np.ndarray  # int32 [B]: tokens generated, including the one that ended the row
    logprobs: np.ndarray | None = None  # float32 [B, N]: of each token when it was chosen, if these were asked for


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
    logprobs: bool = False,
) -> Generated:
    """Continues each prompt by up to `max_new_tokens` tokens.

    Args:
      model: a Decoder or EncoderDecoder.
      prompts: token ids, of any lengths; for an encoder-decoder usually one start token each.
      key: a random key, or one for each prompt [B]. A row's tokens depend on its prompt and its key, or on the key and
        the row's number, but not on other rows.
      max_new_tokens: tokens to generate per row, unless it ends earlier.
      settings: how to sample, see sampling.py; default: greedy.
      eos_id: the token, or any of the tokens, that end a row; the loop stops when all rows have ended. None: rows never
        end.
      vocab_size: ids from here on, which only pad the table, are never sampled. None: the model's.
      sources: encoder-decoders only: the encoder's token ids for each prompt.
      adapters: for a model with several (adapt/bank.py): the adapter of each prompt; -1: only the base.
      logprobs: also return log-probabilities, of the model's distribution at the sampling temperature (1 if greedy),
        before top-k and top-p.

    Raises:
      ValueError: there are no prompts or empty ones, ids outside of the vocabulary, or a prompt with its continuation
        that exceeds the model's context.
    """
    config = model.config
    vocab_size = vocab_size or config.vocab_size
    check(prompts, max_new_tokens, vocab_size, config, sources, model.inputs.tokens.rows)
    # Add rows until the mesh divides their number. They have length 0, so they have ended before they start.
    rows = -(-len(prompts) // axes.parts("batch")) * axes.parts("batch")
    starts, read = _padded(prompts, rows), None if sources is None else _padded(sources, rows)
    if adapters is not None:
        if len(adapters) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(adapters)} adapters; give one for each prompt")
        model = bank.chosen(model, [*adapters, *[-1] * (rows - len(prompts))])
    if key.ndim:
        if len(key) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(key)} keys; give one for each prompt")
        key = key[np.arange(rows) % len(prompts)]  # the added rows need some key
    # Several answers to one prompt read it once. With sources or adapters, a row is more than its prompt.
    of_B = None
    if read is None and adapters is None:
        starts, of_B = _distinct(*starts)
    limit, eos_E = np.int32(max_new_tokens), np.atleast_1d(np.asarray(-1 if eos_id is None else eos_id, np.int32))
    run = functools.partial(_generate, slots=_bucket(max_new_tokens), vocab_size=vocab_size, scored=logprobs)
    tokens_BN, lengths_B, logprobs_BN = run(model, starts, of_B, read, key, limit, settings, eos_E)
    n = len(prompts)
    scores = np.asarray(logprobs_BN)[:n, :max_new_tokens] if logprobs else None
    return Generated(np.asarray(tokens_BN)[:n, :max_new_tokens], np.asarray(lengths_B)[:n], scores)


@functools.partial(jax.jit, static_argnames=("slots", "vocab_size", "scored"))
def _generate(model, starts, of_B, read, key, limit, settings, eos_E, *, slots, vocab_size, scored):
    model = _prepare(model)
    u, p = starts[0].shape
    b = u if of_B is None else len(of_B)
    lengths_B = axes.place(starts[1] if of_B is None else starts[1][of_B], "batch")
    memory = {} if read is None else {"memory": model.remember(Source(*_segmented(*read)))}
    rows_B = axes.place(jnp.arange(b), "batch")
    row_keys_B = axes.place(key, "batch") if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)

    def forward(cache, tokens_BT, segments_BT, positions_BT):
        """Returns the logits [B, V] after the last of T tokens, and the cache with all of them."""
        cache, mask = cache.admit(segments_BT, positions_BT)
        hidden = model(tokens_BT, segments_BT, positions_BT, mask=mask, cache=cache, **memory)
        last_B1D = axes.place(hidden.x_BTD, "batch", None, None)[:, -1:]
        logits_BV = axes.place(model.output(last_B1D).logits()[:, 0], "batch", None)
        return logits_BV[:, :vocab_size], hidden.cache.advance(tokens_BT.shape[1])

    def draw(logits_BV, step):
        """Returns (a token of each row, its log-probability; 0 if these are not asked for)."""
        token_B = sample(logits_BV, jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, step), settings)
        return token_B, logprob(logits_BV, token_B, settings) if scored else jnp.zeros_like(token_B, jnp.float32)

    def ends(token_B):
        return (token_B[:, None] == eos_E).any(-1)

    def write(out, found, step, ended_B):
        """Returns what is written so far with a column more: (tokens, log-probabilities), 0 in rows that have ended."""
        put = lambda a_BN, a_B: jax.lax.dynamic_update_slice_in_dim(
            a_BN, jnp.where(ended_B, 0, a_B)[:, None], step, axis=1
        )
        return jax.tree.map(put, out, found)

    def unfinished(state):
        step, _, _, _, _, ended_B = state
        return (step < limit) & ~ended_B.all()

    def body(state):
        step, cache, token_B, out, counts_B, ended_B = state
        ones_B1 = jnp.ones_like(token_B)[:, None]
        logits_BV, cache = forward(cache, token_B[:, None], ones_B1, (lengths_B + step - 1)[:, None])
        found = draw(logits_BV, step)
        token_B = jnp.where(ended_B, 0, found[0])
        counts_B += ~ended_B
        return step + 1, cache, token_B, write(out, found, step, ended_B), counts_B, ended_B | ends(token_B)

    cache = KVCache.create(model.config, u, p + slots)
    logits_BV, cache = forward(cache, *_segmented(*starts))
    if of_B is not None:
        logits_BV, cache = axes.rows(logits_BV, of_B), cache.rows(of_B)
    empty_B = lengths_B == 0
    found = draw(logits_BV, 0)
    token_B = jnp.where(empty_B, 0, found[0])
    empty = lambda a_B: jnp.zeros((b, slots), a_B.dtype, out_sharding=axes.out("batch", None))
    out = write(jax.tree.map(empty, found), found, 0, empty_B)
    counts_B = (~empty_B).astype(jnp.int32)
    state = (jnp.int32(1), cache, token_B, out, counts_B, empty_B | ends(token_B))
    _, _, _, (out_BN, logprobs_BN), counts_B, _ = jax.lax.while_loop(unfinished, body, state)
    # Replicated, so that every process of a pod can read them.
    return axes.place(out_BN, None, None), axes.place(counts_B, None), axes.place(logprobs_BN, None, None)


def _padded(sequences, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens [rows, P], lengths [rows]) of sequences with left padding, so that all end in the last column."""
    lengths_B = np.zeros(rows, np.int32)
    lengths_B[: len(sequences)] = [len(ids) for ids in sequences]
    tokens_BP = np.zeros((rows, _bucket(int(lengths_B.max()))), np.int32)
    for row, ids in enumerate(sequences):
        tokens_BP[row, tokens_BP.shape[1] - len(ids) :] = ids
    return tokens_BP, lengths_B


def _distinct(tokens_BP: np.ndarray, lengths_B: np.ndarray):
    """Returns ((tokens [U, P], lengths [U]), the row in them of each of the B rows), with equal prompts in one row.

    U is B halved as often as the different prompts and the mesh allow, so that few numbers compile. The rows are None
    if U is B. It is never 1, for which a cache has other dims (KVCache).
    """
    b, parts = len(lengths_B), axes.parts("batch")
    found, first_U, of_B = np.unique(
        np.column_stack([lengths_B, tokens_BP]), axis=0, return_index=True, return_inverse=True
    )
    u = b
    while u % (2 * parts) == 0 and u // 2 >= max(len(found), 2):
        u //= 2
    if u == b:
        return (tokens_BP, lengths_B), None
    first_U = np.pad(first_U, (0, u - len(first_U)), mode="edge")
    return (tokens_BP[first_U], lengths_B[first_U]), of_B.ravel().astype(np.int32)


def _segmented(tokens_BP, lengths_B):
    """Returns (tokens, segments, positions), the inputs of a model."""
    lengths_B, p = axes.place(lengths_B, "batch"), tokens_BP.shape[1]
    places_BP = axes.place(jnp.arange(p, dtype=jnp.int32)[None], None, None) - (p - lengths_B)[:, None]
    segments_BP, positions_BP = (places_BP >= 0).astype(jnp.int32), jnp.maximum(places_BP, 0)
    return axes.place(tokens_BP, "batch", None), segments_BP, positions_BP


def _prepare(model):
    """Does once, before the loop, what each step would repeat."""
    model = without_drops(narrowed(model, jnp.dtype(model.config.dtype)))
    if table.here().unstacked:
        model.stack.unstack()
    return model


def without_drops(model):
    """Returns the model with experts that drop no tokens for a capacity_factor.

    Such a capacity grows with the padded length of the batch, so a row's text would depend on the other rows. A fixed
    capacity stays, as in transformers' Switch.
    """
    for _, module in nnx.iter_graph(model):
        if isinstance(module, MoE) and not module.experts.capacity:
            module.experts = dataclasses.replace(module.experts, capacity_factor=0.0)
    return model


def narrowed(model, dtype):
    """Returns the model cast to its compute dtype, except for parameters that keep their dtype (_KEPT)."""

    def cast(variable):
        if not isinstance(variable, nnx.Param | Frozen):  # quantized
            return variable
        # Biases of the residual stream stay wide; their dim has the name of a norm's.
        of_stream = role_of(variable) is Role.BIAS and variable.get_metadata("out_sharding")[-1] == "norm"
        wide = of_stream or role_of(variable) in _KEPT
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
    """Checks the arguments of `generate` before anything compiles.

    Args:
      max_new_tokens: for all prompts, or one for each.
      known: number of ids with a vector; 0: the vocabulary size.

    Raises:
      ValueError: see `generate`.
    """
    known = known or config.vocab_size
    if config.architecture == "encoder" or config.head != "language_model":
        raise ValueError(
            f"the model has the architecture {config.architecture} and the head {config.head}; only models with a "
            "decoder and the head language_model continue text"
        )
    if (config.architecture == "encoder_decoder") != (sources is not None):
        raise ValueError("an encoder-decoder, and no other model, needs sources: a text to read for each prompt")
    if sources is not None and (len(sources) != len(prompts) or not all(map(len, sources))):
        raise ValueError(f"{len(prompts)} prompts and {len(sources)} sources; each prompt needs one that is not empty")
    if not len(prompts):
        raise ValueError("there is no prompt to continue")
    limits = np.broadcast_to(max_new_tokens, len(prompts)).tolist()
    if min(limits) < 1:
        raise ValueError(f"max_new_tokens is {min(limits)}; it must be at least 1")
    if not 0 < vocab_size <= config.vocab_size:
        raise ValueError(f"vocab_size {vocab_size} must lie in [1, {config.vocab_size}], the model's")
    for what, rows, more in (("prompt", prompts, limits), ("source", sources or (), [0] * len(sources or ()))):
        for row, (ids, new) in enumerate(zip(rows, more, strict=True)):
            if not len(ids):
                raise ValueError(f"{what} {row} is empty; start it with a special token or with text")
            if min(ids) < 0 or max(ids) >= known:
                raise ValueError(f"{what} {row} has ids from {min(ids)} to {max(ids)}, but the vocabulary has {known}")
            if len(ids) + new > config.max_length:
                raise ValueError(
                    f"{what} {row} has {len(ids)} tokens, with {new} new ones {len(ids) + new}, but the model's "
                    f"context is {config.max_length} (model.max_length)"
                )


def _bucket(length: int) -> int:
    """Rounds a length up, so that few lengths compile: four steps per doubling, with at most a quarter wasted."""
    step = max(_SMALLEST_BUCKET, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step
