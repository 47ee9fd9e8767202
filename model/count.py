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


def names(config: ModelConfig) -> list[str]:
    """Of all parameters."""
    return list(_shapes(config))


def flops_per_token(config: ModelConfig, length: int, *, target_length: int = 0, training: bool = True) -> float:
    """Model FLOPs for one token of a sequence of `length` tokens.

    2 a weight forward and 4 backward, plus the two products of attention, with the keys that a token sees on average:
    of the causal ones half (length / 2), of a window at most its width. Of experts, those that a token goes to.
    Recomputation (remat) is not counted, so that a slower policy does not look better. PaLM's appendix B
    (arXiv:2204.02311) with the mask taken into account.

    Args:
      target_length: of an encoder-decoder, for which `length` is that of the source: the result is all FLOPs for a
        source and its target, over the tokens of the source.
    """
    both = config.architecture == "encoder_decoder"
    own = target_length if both else length
    scores = config.head in ("language_model", "masked")
    products = own * config.vocab_size * config.table_dim if scores else 0
    for path, leaf in _shapes(config).items():
        name = path.rsplit("/", 1)[-1]
        if not path.startswith(_TABLES) and "bias" not in path and name not in ("scale", "correction"):
            runs = config.num_layers // config.share_groups if _shared(config, path) else 1
            used = config.experts.per_token / config.experts.count if name.startswith("experts_") else 1
            reads_source = path.startswith("encoder/") or path.endswith(("cross/key", "cross/value"))
            products += leaf.size * runs * used * (length if reads_source else own)
    if both:
        layers = config.encoder_layers or config.num_layers
        products += _attention(config, layers, length, causal=False)
        products += config.num_layers * config.num_heads * 2 * config.head_dim * own * length  # of the source
    products += _attention(config, config.num_layers, own, causal=config.architecture != "encoder")
    return 2 * products / length * (3 if training else 1)


def _attention(config: ModelConfig, layers: int, length: int, *, causal: bool) -> float:
    """Multiply-adds of the two products of attention in a stack, of `length` tokens to themselves."""
    widths = config.head_dim + (config.latent.value_dim if config.latent else config.head_dim)
    total = 0
    for segment in config.segments(layers):
        for kind in segment.kinds:
            seen = config.window if kind.attention == "local" and config.window < length else length
            seen -= seen**2 / (2 * length)  # on one side: the first tokens have fewer before them
            total += segment.repeats * config.num_heads * widths * length * seen * (1 if causal else 2)
    return total


def _shared(config: ModelConfig, path: str) -> bool:
    return bool(config.share_groups) and path.startswith("stack/segments")


@functools.lru_cache
def _shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return by_name(jax.eval_shape(lambda key: make(config, nnx.Rngs(key)), jax.random.key(0)))
