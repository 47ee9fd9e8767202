"""Parameters and FLOPs of a config, counted on the modules themselves (shapes only: nothing is allocated)."""

import functools

import jax
from flax import nnx

from model.config import ModelConfig
from model.families import make
from model.weights import by_name

_TABLES = ("inputs/tokens", "inputs/positions", "inputs/types", "unembedding/table")


def num_params(config: ModelConfig, *, embedding: bool = True) -> int:
    """Parameters, each counted once (a tied table too); `embedding=False` leaves out tables and output layer."""
    shapes = _shapes(config)
    return sum(leaf.size for path, leaf in shapes.items() if embedding or not path.startswith(_TABLES))


def flops_per_token(config: ModelConfig, length: int, *, training: bool = True) -> float:
    """Model FLOPs for one token of a sequence of `length` tokens.

    2 a weight forward and 4 backward, plus the two products of attention, with the keys that a token sees on average:
    of the causal ones half (length / 2), of a window at most its width. Recomputation (remat) is not counted, so that
    a slower policy does not look better. PaLM's appendix B (arXiv:2204.02311) with the mask taken into account.
    """
    weights = config.vocab_size * config.table_dim if config.head in ("language_model", "masked") else 0
    for path, leaf in _shapes(config).items():
        name = path.rsplit("/", 1)[-1]
        if not path.startswith(_TABLES) and "bias" not in path and name != "scale":
            weights += leaf.size * (config.num_layers // config.share_groups if _shared(config, path) else 1)
    attention = 0
    for segment in config.segments():
        for kind in segment.kinds:
            seen = length if config.architecture == "encoder" else length / 2
            if kind.attention == "local" and config.window < length:
                seen = config.window - config.window**2 / (2 * length)
            attention += segment.repeats * 2 * 2 * config.num_heads * config.head_dim * seen
    return (2 * weights + attention) * (3 if training else 1)


def _shared(config: ModelConfig, path: str) -> bool:
    return bool(config.share_groups) and path.startswith("stack/segments")


@functools.lru_cache
def _shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return by_name(jax.eval_shape(lambda key: make(config, nnx.Rngs(key)), jax.random.key(0)))
