"""What of a model trains: some of its own parameters, or a few new ones over frozen ones."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from model.adapt import bottleneck
from model.adapt.bottleneck import Bottleneck
from model.adapt.lora import Lora, LowRank, weights
from model.adapt.prompt import Prompt
from model.compress.quantize import Settings
from model.compress.quantized import QuantizedWeight
from model.config import ModelConfig
from model.patterns import Rules, by_array, cuts
from model.weights import is_variable, marked, trained

METHODS = {"none": None, "lora": Lora, "adapter": Bottleneck, "prompt": Prompt}
BASE = {"base": "float", "double_quantization": True}  # fields of what a method stands on, with their defaults
_HEADS = (("classifier|pooler", True), (".*", False))  # of classes: new for each task, so they train beside an adapter


@dataclasses.dataclass(frozen=True)
class Tuning:
    """
    Args:
      method: None: the model's own parameters train.
      train_only: (pattern, bool) in order: which of its own parameters train, as a whole and without an adapter. Empty:
        all; with a method, only heads of classes.
      quantization: of the weights that stay, before `apply`.
    """

    method: Lora | Bottleneck | Prompt | None = None
    train_only: Rules = ()
    quantization: Settings | None = None

    def apply(self, model, key: jax.Array):
        """The model, given away, in which what shall train does, and nothing else. With a method that is float32,
        whatever the rest is kept in: a small step is lost in fewer bits (as in peft's prepare_model_for_kbit_training).

        Raises:
          ValueError: nothing would train, a quantized weight would, or the method does not fit the model.
        """
        found = weights(model)
        rules = self.train_only or (_HEADS if self.method else ((".*", True),))
        own = by_array(model.config, found, rules, "train_only")
        if stuck := [name for name, w in found.items() if own[name] and isinstance(w, QuantizedWeight)]:
            raise ValueError(
                f"train_only: {stuck[0]} is quantized and can't train; leave it out of the patterns that are True, or "
                "set adapt.base to float"
            )
        model = marked(model, lambda name, _: own[name])
        if self.method is not None:
            model = self.method.insert(jax.tree.map(_in_float32, model, is_leaf=is_variable), key)
        if not trained(model):
            raise ValueError("train_only: no parameter would train")
        return model

    def cuts(self, config: ModelConfig, names) -> tuple[int, ...]:
        """Where the stacks must be parted, so that each array of a model as a whole trains or doesn't."""
        lists = {"train_only": self.train_only}
        lists |= {"adapt.targets": self.method.targets} if isinstance(self.method, Lora) else {}
        return tuple(sorted({cut for of, rules in lists.items() if rules for cut in cuts(config, names, rules, of)}))


def stands_on_frozen_base(model) -> bool:
    """Whether `without_adapters` can give the base under what trains."""
    return bool(trained(model)) and not trained(_off(model))


def without_adapters(model):
    """The frozen base under what trains: the same arrays, without the adapters that stand on them.

    Raises:
      ValueError: the model has no adapter, or parameters of the base train beside it, or it is tuned by a prompt, whose
        vectors have places of their own in the rows.
    """
    off = _off(model)
    if trained(off):
        raise ValueError(f"the base under the adapter is not frozen: {next(iter(trained(off)))} trains")
    if not trained(model):
        raise ValueError("the model has no adapter, so its base cannot be told from it")
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
    """From the block `adapt` of a config: `method`, the fields of that method, and of what it stands on: `base`
    ('float', 'nf4' or 'int8') and `double_quantization` (of nf4's scales).

    Raises:
      ValueError: an unknown method or field, or a value that is not possible.
    """
    fields = dict(fields)
    method = fields.pop("method", "none")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose from {', '.join(METHODS)}")
    base, double = (fields.pop(name, default) for name, default in BASE.items())
    quantization = None if base == "float" else Settings(base, double)
    if METHODS[method] is None:
        if quantization:
            raise ValueError(f"base is {base!r}, but quantized weights can't train: choose a method")
        return Tuning(None, tuple(train_only))
    known = [field.name for field in dataclasses.fields(METHODS[method])]
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"{unknown[0]} is no field of method {method}; it has {', '.join(known)}")
    return Tuning(METHODS[method](**fields), tuple(train_only), quantization)
