"""Parameters and FLOPs of a config, counted on the modules themselves (shapes only: nothing is allocated)."""

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
    """Parameters, each counted once (a tied table too); `embedding=False` leaves out tables and output layer."""
    shapes = _shapes(config)
    return sum(leaf.size for leaf in shapes.values() if embedding or role_of(leaf) not in LOOKED_UP)


def names(config: ModelConfig) -> list[str]:
    """Of all parameters."""
    return list(_shapes(config))


def flops_per_token(
    config: ModelConfig, length: int, *, target_length: int = 0, training: bool = True, trains: Mapping | None = None
) -> float:
    """Model FLOPs for one token of a sequence of `length` tokens.

    2 a weight forward and 4 backward, plus the two products of attention, with the keys that a token sees on average:
    of the causal ones half (length / 2), of a window at most its width. Of experts, those that a token goes to.
    Recomputation (remat) is not counted, so that a slower policy does not look better. PaLM's appendix B
    (arXiv:2204.02311) with the mask taken into account.

    Backward are 2 for the gradient of a weight, where it trains, and 2 for that of its input, from the first layer on
    in which anything trains, or below which.

    Args:
      target_length: of an encoder-decoder, for which `length` is that of the source: the result is all FLOPs for a
        source and its target, over the tokens of the source.
      trains: what trains, by name (weights.trained). None: every parameter.
    """
    both = config.architecture == "encoder_decoder"
    own, shapes = target_length if both else length, _shapes(config)
    flow = _Flow(config, shapes if trains is None else trains, training)
    products = 0
    if config.head in ("language_model", "masked"):
        table = "unembedding/table" if "unembedding/table" in shapes else "inputs/tokens/table"
        products += own * config.vocab_size * config.table_dim * flow.passes(table)
    added = {} if trains is None else {path: leaf for path, leaf in trains.items() if path not in shapes}
    for path, leaf in (shapes | added).items():
        if role_of(leaf) not in LOOKED_UP + ELEMENTWISE:
            runs = config.num_layers // config.share_groups if _shared(config, path) else 1
            of_experts = "experts" in leaf.get_metadata("out_sharding")  # a low-rank adapter's may be, too
            used = config.experts.per_token / config.experts.count if of_experts else 1
            reads_source = path.startswith("encoder/") or "cross/key" in path or "cross/value" in path
            products += leaf.size * runs * used * (length if reads_source else own) * flow.passes(path)
    if both:
        layers = config.encoder_layers or config.num_layers
        products += _attention(config, layers, length, lambda n: flow.of_layer("encoder", n), causal=False)
        of_the_source = config.num_heads * 2 * config.head_dim * own * length
        products += sum(of_the_source * flow.of_layer("stack", layer) for layer in range(config.num_layers))
    causal = config.architecture != "encoder"
    products += _attention(config, config.num_layers, own, lambda n: flow.of_layer("stack", n), causal=causal)
    return 2 * products / length


class _Flow:
    """Through what of a model gradients pass."""

    def __init__(self, config: ModelConfig, trains: Iterable[str], training: bool):
        self.config, self.trains, self.training = config, set(trains), training
        at_inputs = any(name.startswith("inputs/") for name in self.trains)
        self.source = at_inputs or any(name.startswith("encoder") for name in self.trains)
        self.first = {"encoder": 0 if at_inputs else math.inf, "stack": 0 if self.source else math.inf}
        for name in self.trains:
            stack = name.split("/")[0]
            if stack in self.first:
                where = patterns.layers(config, name)
                # What is of a stack and of no layer, a bias by distance, goes into its first one.
                self.first[stack] = min(self.first[stack], where[1][0] if where else 0)

    def of_layer(self, stack: str, number: int) -> int:
        """Passes of a product of two activations: one forward, and two if gradients reach its layer."""
        return 3 if self.training and number >= self.first[stack] else 1

    def passes(self, name: str) -> float:
        """Of a weight: forward, gradient of its input, gradient of its own; the mean of the layers in its array."""
        if not self.training:
            return 1
        where = patterns.layers(self.config, name)
        if name == "inputs/tokens/table":  # counted where it is the output layer too: above all that trains
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
    """Multiply-adds of the two products of attention in a stack, of `length` tokens to themselves, each layer's as
    often as `passes` says."""
    widths = config.head_dim + (config.latent.value_dim if config.latent else config.head_dim)
    kinds = [kind for segment in config.segments(layers) for kind in segment.kinds * segment.repeats]
    total = 0
    for layer, kind in enumerate(kinds):
        seen = config.window if kind.attention == "local" and config.window < length else length
        seen -= seen**2 / (2 * length)  # on one side: the first tokens have fewer before them
        total += config.num_heads * widths * length * seen * (1 if causal else 2) * passes(layer)
    return total


def _shared(config: ModelConfig, path: str) -> bool:
    return bool(config.share_groups) and path.startswith("stack/segments")


@functools.lru_cache
def _shapes(config: ModelConfig) -> dict[str, nnx.Param]:
    return variables(jax.eval_shape(lambda key: make(config, nnx.Rngs(key)), jax.random.key(0)))
