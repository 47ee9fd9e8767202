"""What trains: some of a model's own parameters, or a few new ones over frozen ones."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from model.adapt import bottleneck
from model.adapt.bottleneck import Bottleneck
from model.adapt.lora import Lora, LowRank, weights
from model.adapt.prompt import Prompt
from model.compress.quantize import FORMS, Settings
from model.compress.quantized import QuantizedWeight
from model.config import ModelConfig
from model.patterns import Rules, by_array, cuts
from model.weights import is_variable, marked, trained

METHODS: dict[str, type[Lora] | type[Bottleneck] | type[Prompt] | None] = {
    "none": None,
    "lora": Lora,
    "adapter": Bottleneck,
    "prompt": Prompt,
}
BASE = {"base": "float", "double_quantization": True}  # fields of the frozen base, with their defaults
_HEADS = (("classifier|pooler", True), (".*", False))  # new for each task, so they train along with an adapter


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How to tune a model.

    Args:
      method: None: the model's own parameters train.
      train_only: ordered (pattern, bool): which of the model's own parameters train, fully and without an adapter.
        Empty: all, or, with a method, only classification heads.
      quantization: of the frozen weights; quantize them before `apply`.
    """

    method: Lora | Bottleneck | Prompt | None = None
    train_only: Rules = ()
    quantization: Settings | None = None

    def apply(self, model, key: jax.Array):
        """Returns the model with exactly the chosen parameters trainable; consumes the given one.

        With a method, trainable parameters become float32, whatever dtype the rest has: small updates would be lost in
        fewer bits (as in peft's prepare_model_for_kbit_training).

        Raises:
          ValueError: nothing would train, a quantized weight would, or the method does not fit the model.
        """
        found = weights(model)
        rules = self.train_only or (_HEADS if self.method else ((".*", True),))
        own = by_array(model.config, found, rules, "train_only")
        if stuck := [name for name, w in found.items() if own[name] and isinstance(w, QuantizedWeight)]:
            raise ValueError(
                f"train_only: {stuck[0]} is quantized and can't train; exclude it from the patterns that are True, or "
                "set adapt.base to float"
            )
        model = marked(model, lambda name, _: own[name])
        if self.method is not None:
            model = self.method.insert(jax.tree.map(_in_float32, model, is_leaf=is_variable), key)
        if not trained(model):
            raise ValueError("train_only: no parameter would train")
        return model

    def cuts(self, config: ModelConfig, names) -> tuple[int, ...]:
        """Returns where to split the stacks, so that each array either trains or is frozen as a whole."""
        lists = {"train_only": self.train_only}
        lists |= {"adapt.targets": self.method.targets} if isinstance(self.method, Lora) else {}
        return tuple(sorted({cut for of, rules in lists.items() if rules for cut in cuts(config, names, rules, of)}))


def stands_on_frozen_base(model) -> bool:
    """Returns whether `without_adapters` can return the base."""
    return bool(trained(model)) and not trained(_off(model))


def without_adapters(model):
    """Returns the frozen base: the same arrays, without the adapters over them.

    Raises:
      ValueError: there is no adapter, some of the base's parameters train, or the model is prompt-tuned (its vectors
        take positions of the rows).
    """
    off = _off(model)
    if trained(off):
        raise ValueError(f"the base under the adapter is not frozen: {next(iter(trained(off)))} trains")
    if not trained(model):
        raise ValueError("the model has no adapter, so it has no separate base")
    return off


def _off(model):
    return bottleneck.without(
        jax.tree.map(lambda w: w.base if isinstance(w, LowRank) else w, model, is_leaf=_is_low_rank)
    )


def _is_low_rank(leaf) -> bool:
    return isinstance(leaf, LowRank)


def _in_float32(v: nnx.Variable) -> nnx.Variable:
    return v.replace(v[...].astype(jnp.float32)) if isinstance(v, nnx.Param) else v


def make(fields: Mapping, train_only: Rules = ()) -> Tuning:
    """Makes a Tuning from the block `adapt` of a config.

    Args:
      fields: `method`, that method's fields, and the base's: `base` ('float', 'nf4' or 'int8') and
        `double_quantization` (of nf4's scales).
      train_only: see Tuning.

    Raises:
      ValueError: an unknown method or field, or an impossible value.
    """
    fields = dict(fields)
    method = fields.pop("method", "none")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose from {', '.join(METHODS)}")
    base, double = (fields.pop(name, default) for name, default in BASE.items())
    if base not in ("float", *FORMS):
        raise ValueError(f"base is {base!r}; choose from float, {', '.join(FORMS)}")
    quantization = None if base == "float" else Settings(base, double)
    kind = METHODS[method]
    if kind is None:
        if quantization:
            raise ValueError(f"base is {base!r}, but quantized weights can't train; choose a method")
        return Tuning(None, tuple(train_only))
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"{unknown[0]} is not a field of method {method}; choose from {', '.join(known)}")
    return Tuning(kind(**fields), tuple(train_only), quantization)
