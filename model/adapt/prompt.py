"""Prompt tuning (arXiv:2104.08691): only a few vectors in front of the embedded text train.

They are additional rows of the embedding table, with ids after the vocabulary's, and an example starts with these ids.
So packing, positions, caches and encoders work without changes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.roles import Role
from model.weights import param


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Settings of prompt tuning.

    Args:
      length: number of vectors.
      init_ids: tokens whose vectors initialize the prompt, repeated or truncated to `length`; empty: random tokens.

    Raises:
      ValueError: a field has an impossible value.
    """

    length: int = 20
    init_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if type(self.length) is not int or self.length < 1:
            raise ValueError(f"length is {self.length!r}; it must be a whole number of at least 1")

    def ids(self, vocab_size: int) -> tuple[int, ...]:
        """Returns the ids that an example starts with, for a model of this vocabulary size."""
        return tuple(range(vocab_size, vocab_size + self.length))

    def insert(self, model, key: jax.Array):
        """Adds the vectors to the model; returns it."""
        table, vocab_size = model.inputs.tokens.table, model.config.vocab_size

        def init(key, shape, dtype):
            rows = jax.random.randint(key, shape[:1], 0, vocab_size)
            if self.init_ids:
                rows = jnp.resize(jnp.asarray(self.init_ids, jnp.int32), shape[:1])
            whole = axes.gather(table[...])
            return whole.at[rows].get(out_sharding=axes.out(None, None)).astype(dtype)

        shape = (self.length, table.shape[1])
        model.inputs.tokens.prompt = param(
            nnx.Rngs(key), shape, ("positions", "embed"), init, jnp.float32, role=Role.TABLE
        )
        return model
