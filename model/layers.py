"""Norms, embedding, feed-forward, linear layers, dropout.

Dims: B batch, T length, D embed (features of the residual stream), F hidden (mlp), V vocabulary.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.config import ModelConfig
from model.roles import Role
from model.weights import einsum, param

RESIDUAL = ("batch", "stream", "features")
HIDDEN = ("batch", "length", "features")  # RESIDUAL where it is multiplied: gathered along what `tensor` splits


class Norm(nnx.Module):
    """RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450) over the last dim.

    It computes in float32 and returns the input's dtype.

    Args:
      dim: size of the last dim; 0: the residual stream's.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dim: int = 0):
        shape, dtype = (dim or config.embed_dim,), jnp.dtype(config.param_dtype)
        self.epsilon, self.offset = config.norm_epsilon, config.norm_offset
        make = functools.partial(param, rngs, shape, ("norm",), dtype=dtype, role=Role.NORM)
        self.scale = make(nnx.initializers.constant(1 - self.offset))
        self.bias = make(nnx.initializers.zeros) if config.norm == "layernorm" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        return _norm(x, self.scale[...], bias, self.epsilon, self.offset)


# The backward pass saves only the input of norms and activations: recomputing them is cheaper than storing them.
@functools.partial(jax.checkpoint, static_argnums=(3, 4))
def _norm(x_given, scale, bias, epsilon, offset):
    x, scale = x_given.astype(jnp.float32), scale.astype(jnp.float32)
    if bias is not None:
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * (offset + scale if offset else scale)
    if bias is not None:
        x = x + bias.astype(jnp.float32)
    return x.astype(x_given.dtype)


class Embedding(nnx.Module):
    """A table of vectors [rows, D] for tokens (role TABLE), or for positions or token types (role POSITION)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rows: int, role: Role = Role.TABLE, dim: int = 0):
        init = nnx.initializers.normal(config.init_std)
        self.dtype = jnp.dtype(config.dtype)
        shape = (rows, dim or config.embed_dim)
        names = ("vocab" if role is Role.TABLE else "positions", "embed")
        self.table = param(rngs, shape, names, init, jnp.dtype(config.param_dtype), role=role)
        self.prompt = nnx.data(None)  # additional rows of prompt tuning (adapt/prompt.py)

    @property
    def rows(self) -> int:
        """The number of ids that have a vector."""
        return self.table.shape[0] + (0 if self.prompt is None else self.prompt.shape[0])

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """Looks up vectors: ids [B, T] -> [B, T, D]."""
        if self.prompt is None:
            return self._look_up(self.table, ids_BT)
        rows, ids_BT = self.table.shape[0], axes.place(ids_BT, *RESIDUAL[:2])
        x_BTD = self._look_up(self.table, jnp.minimum(ids_BT, rows - 1))
        prompt_BTD = self._look_up(self.prompt, jnp.maximum(ids_BT - rows, 0))
        return jnp.where((ids_BT >= rows)[..., None], prompt_BTD, x_BTD)

    def _look_up(self, table, ids_BT):
        """Gathers the table over fsdp before the lookup. Otherwise XLA would replicate the activations ("involuntary
        full rematerialization"), because the table's vectors are split."""
        table = axes.gather(table[...].astype(self.dtype))
        shape = (*ids_BT.shape, table.shape[1])
        return table.at[ids_BT].get(out_sharding=axes.out(*RESIDUAL, shape=shape), mode="promise_in_bounds")


class FeedForward(nnx.Module):
    """The feed-forward: down(act(up(x))), or gated down(act(gate(x)) * up(x)) (GLU variants, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, hidden_dim: int = 0):
        d, f, dtype = config.embed_dim, hidden_dim or config.mlp_dim, jnp.dtype(config.param_dtype)
        init, zeros = nnx.initializers.normal(config.init_std), nnx.initializers.zeros
        self.activation = config.activation
        matrix = functools.partial(param, dtype=dtype, role=Role.MATRIX)
        widening = lambda: matrix(rngs, (d, f), ("embed", "mlp"), init, inputs=("embed",))
        self.gate = widening() if config.gated else None
        self.up = widening()
        self.down = matrix(rngs, (f, d), ("mlp", "embed"), residual_init(config), inputs=("mlp",))
        biased = config.mlp_bias
        bias = lambda dim, name: param(rngs, (dim,), (name,), zeros, dtype, role=Role.BIAS) if biased else None
        self.gate_bias = bias(f, "mlp") if config.gated else None
        self.up_bias = bias(f, "mlp")
        self.down_bias = bias(d, "norm")

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        hidden = ("batch", "length", "mlp")
        h_BTF = add_bias(einsum("BTD,DF->BTF", x_BTD, self.up, hidden), self.up_bias)
        if self.gate is None:
            h_BTF = activate(h_BTF, self.activation)
        else:
            gate_BTF = add_bias(einsum("BTD,DF->BTF", x_BTD, self.gate, hidden), self.gate_bias)
            h_BTF = activate(gate_BTF, self.activation) * h_BTF
        return add_bias(einsum("BTF,FD->BTD", h_BTF, self.down, RESIDUAL), self.down_bias)


class Linear(nnx.Module):
    """x weight + bias, [B, T, inputs] -> [B, T, outputs], outside of the blocks: in heads and between widths."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, inputs: int, outputs: int, *, bias: bool):
        dtype = jnp.dtype(config.param_dtype)
        init, zeros = nnx.initializers.normal(config.init_std), nnx.initializers.zeros
        names, role = ("embed", "features"), Role.PROJECTION
        self.weight = param(rngs, (inputs, outputs), names, init, dtype, role=role, inputs=("embed",))
        self.bias = param(rngs, (outputs,), ("norm",), zeros, dtype, role=Role.BIAS) if bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return add_bias(einsum("BTD,DE->BTE", x_BTD, self.weight, HIDDEN), self.bias)


def residual_init(config: ModelConfig):
    """Returns the initializer of projections into the residual stream: std / sqrt(2 layers) (GPT-2, section 2.3)."""
    return nnx.initializers.normal(config.init_std / (2 * config.num_layers) ** 0.5)


def add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """Adds a bias in float32, so that its gradient, a sum over all tokens, accumulates in float32."""
    return x if bias is None else (x + bias[...].astype(jnp.float32)).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes features with probability `rate` and scales up the rest; without a key (evaluation) returns `x`."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(
        key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding if axes.has_mesh() else None
    )
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def noisy(x_BTD: jax.Array, alpha: float, key: jax.Array) -> jax.Array:
    """Adds noise from U(-m, m) to embeddings, m = alpha / sqrt(T D) (NEFTune, arXiv:2310.05914)."""
    bound = alpha / (x_BTD.shape[1] * x_BTD.shape[2]) ** 0.5
    sharding = jax.typeof(x_BTD).sharding if axes.has_mesh() else None
    noise = jax.random.uniform(key, x_BTD.shape, jnp.float32, -bound, bound, out_sharding=sharding)
    return (x_BTD + noise).astype(x_BTD.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,  # another name for silu
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # with erf, as in BERT
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # GPT-2's approximation (arXiv:1606.08415)
}


@functools.partial(jax.checkpoint, static_argnums=(1,))
def activate(x: jax.Array, name: str) -> jax.Array:
    """Applies the activation `name`, computed in float32."""
    return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)
