"""Parameters and FLOPs of a config, counted on the modules' shapes without allocating anything."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax
from flax import nnx

from model import patterns
from model.architectures import make
from model.config import ModelConfig
from model.roles import ELEMENTWISE, LOOKED_UP, role_of
from model.weights import variables


def num_params(config: ModelConfig, *, embedding: bool = True) -> int:
    """Returns the number of parameters, a tied table once; `embedding=False` excludes tables and the output layer."""
    shapes = _shapes(config)
    return sum(leaf.size for leaf in shapes.values() if embedding or role_of(leaf) not in LOOKED_UP)


def names(config: ModelConfig) -> list[str]:
    """Returns the names of all parameters."""
    return list(_shapes(config))


def flops_per_token(
    config: ModelConfig, length: int, *, target_length: int = 0, training: bool = True, trains: Mapping | None = None
) -> float:
    """Returns the model FLOPs for one token of a sequence of `length` tokens.

    Each weight costs 2 FLOPs forward and 4 backward. The two matmuls of attention count the keys that a token sees on
    average: half of them if causal (length / 2), at most the window's width with a window. Only a token's own experts
    count. This is PaLM's appendix B (arXiv:2204.02311), except that it respects the mask. Recomputation (remat) is not
    counted, so that a slower policy does not look better.

    The backward pass costs 2 for the gradient of a weight that trains, and 2 for the gradient of its input if anything
    that trains is in the same or an earlier layer.

    Args:
      length: sequence length; for an encoder-decoder, the source's.
      target_length: encoder-decoders only: the target's length. The result is then the FLOPs of a source and its target
        divided by the source's tokens.
      trains: the trainable parameters by name (weights.trained); None: all.
    """
    both = config.architecture == "encoder_decoder"
    own, shapes = target_length if both else length, _shapes(config)
    flow = _Flow(config, shapes if trains is None else trains, training)
    products: float = 0
    if config.head in ("language_model", "masked"):
        table = "unembedding/table" if "unembedding/table" in shapes else "inputs/tokens/table"
        products += own * config.vocab_size * config.table_dim * flow.passes(table)
    added = {} if trains is None else {path: leaf for path, leaf in trains.items() if path not in shapes}
    for path, leaf in (shapes | added).items():
        if role_of(leaf) not in LOOKED_UP + ELEMENTWISE:
            runs = config.num_layers // config.share_groups if _shared(config, path) else 1
            experts = config.experts if "experts" in leaf.get_metadata("out_sharding") else None  # also in LoRA weights
            used = experts.per_token / experts.count if experts else 1
            reads_source = path.startswith("encoder/") or "cross/key" in path or "cross/value" in path
            products += leaf.size * runs * used * (length if reads_source else own) * flow.passes(path)
    if both:
        layers = config.encoder_layers or config.num_layers
        products += _attention(config, layers, length, lambda n: flow.of_layer("encoder", n), causal=False)
        cross_products = config.num_heads * 2 * config.head_dim * own * length
        products += sum(cross_products * flow.of_layer("stack", layer) for layer in range(config.num_layers))
    causal = config.architecture != "encoder"
    products += _attention(config, config.num_layers, own, lambda n: flow.of_layer("stack", n), causal=causal)
    return 2 * products / length


class _Flow:
    """Tracks which parts of a model gradients flow through."""

    def __init__(self, config: ModelConfig, trains: Iterable[str], training: bool):
        self.config, self.trains, self.training = config, set(trains), training
        at_inputs = any(name.startswith("inputs/") for name in self.trains)
        self.source = at_inputs or any(name.startswith("encoder") for name in self.trains)
        self.first = {"encoder": 0 if at_inputs else math.inf, "stack": 0 if self.source else math.inf}
        for name in self.trains:
            stack = name.split("/")[0]
            if stack in self.first:
                where = patterns.layers(config, name)
                # A parameter of the stack but of no layer, a bias by distance, feeds the first layer.
                self.first[stack] = min(self.first[stack], where[1][0] if where else 0)

    def of_layer(self, stack: str, number: int) -> int:
        """Returns the passes of a matmul of two activations: 1 forward, and 2 backward if gradients reach its layer."""
        return 3 if self.training and number >= self.first[stack] else 1

    def passes(self, name: str) -> float:
        """Returns a weight's passes: forward, input gradient, weight gradient; averaged over the array's layers."""
        if not self.training:
            return 1
        where = patterns.layers(self.config, name)
        reached: float
        if name == "inputs/tokens/table":  # counted as the output layer, so everything that trains is below it
            reached = bool(self.trains)
        elif where is None:
            below = {other for other in self.trains if other.startswith("inputs/") or not name.startswith("inputs/")}
            reached = bool(below - {name})
        elif "cross/key" in name or "cross/value" in name:
            reached = self.source
        else:
            stack, numbers, _ = where
            reached = sum(number >= self.first[stack] for number in numbers) / len(numbers)
        return 1 + reached + (name in self.trains)


def _attention(config: ModelConfig, layers: int, length: int, passes: Callable[[int], int], *, causal: bool) -> float:
    """Returns the multiply-adds of self-attention's two matmuls in a stack, for a sequence of `length` tokens.

    Args:
      passes: layer -> how many times its matmuls run.
    """
    widths = config.head_dim + (config.latent.value_dim if config.latent else config.head_dim)
    kinds = [kind for segment in config.segments(layers) for kind in segment.kinds * segment.repeats]
    total: float = 0
    for layer, kind in enumerate(kinds):
        seen: float = config.window if kind.attention == "local" and config.window < length else length
        seen -= seen**2 / (2 * length)  # average keys on one side: early tokens have fewer before them
        total += config.num_heads * widths * length * seen * (1 if causal else 2) * passes(layer)
    return total


def _shared(config: ModelConfig, path: str) -> bool:
    return bool(config.share_groups) and path.startswith("stack/segments")


@functools.lru_cache
def _shapes(config: ModelConfig) -> dict[str, nnx.Variable]:
    return variables(jax.eval_shape(lambda: make(config, nnx.Rngs(0))))
