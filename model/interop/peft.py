"""Low-rank adapters in the format of Hugging Face's peft: adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [rank, in]
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight    [out, rank]

The layout of A and B follows from their weight's, so this code uses the families' tables.

A linear layer of theirs has one A, even if it contains several of our weights (GPT-2's c_attn). When reading, each of
these weights gets a copy of A and its part of B. When writing, weights with equal A share it, and different ones are
concatenated, with zeros in B for the ranks of other weights. Layers that one of our arrays stacks have one rank:
smaller ranks are padded with zeros, which never train and are removed in writing. One of our adapters has one scale: if
theirs differ, B absorbs the difference. So both directions keep the function. Further training differs if weights
shared an A or scales differed.

Refused with an error: DoRA, biases, adapters of embeddings and of other kinds, layers selected by number; in writing,
also feed-forward layers of models with experts.
"""

import functools
import math
from collections.abc import Collection
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather

from model import architectures, patterns
from model.adapt import lora
from model.adapt.tuning import Tuning
from model.config import ModelConfig
from model.interop import peft_config, table
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.interop.files.writer import Writer, json_text
from model.interop.layout import Entry
from model.interop.table import Piece, Table, Theirs
from model.weights import replaced, trained, variables

FILES = "adapter_"  # prefix of file names
_MODEL = "base_model.model."  # prefix of tensor names
_FACTORS = (".lora_A.weight", ".lora_B.weight")  # suffixes of tensor names
# Suffixes of modules that peft (0.21, with transformers 5) mistakes for experts in any model that has experts.
_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


class Linear(NamedTuple):
    """One of their linear layers, and the layout of our adapters' factors on it."""

    weight: Theirs
    a: dict[str, Entry]  # by our weight's name
    b: dict[str, Entry]
    transposed: bool  # whether the weight is [in, out]

    def factors(self, rank: int) -> list[Theirs]:
        """Returns A and B of this rank."""
        sizes, made = self.weight.sizes | {"rank": rank}, []
        for entries in (self.a, self.b):
            pieces = [Piece(entries[entry.path], index) for entry, index in self.weight.pieces]
            made.append(Theirs(pieces, sizes, pieces[0].entry.shape(sizes)))
        return made


def read(path, family_table: Table, base) -> tuple[nnx.Module, Tuning]:
    """Returns (the model `base` with a folder's adapter, the settings that make such a model).

    Args:
      family_table: of the base's family.

    Raises:
      CheckpointFolderError: there is no adapter, or one of another kind or for another model; or tensors are missing,
        unexpected or of another shape, which is checked before any is read.
    """
    folder = Folder(path, FILES)
    given, leaves = peft_config.read(folder, base.config), _parameters(base.config)
    linears = {module: own for module, own in _linears(family_table, leaves).items() if given.targets(module)}
    if not linears:
        raise CheckpointFolderError(f"{folder.path}: target_modules name no linear layer of this model")
    wanted = {_MODEL + n: own for n, own in table.expected(family_table, leaves).items() if given.saves(_module(n))}
    saved = {entry.path for theirs in wanted.values() for entry, _ in theirs.pieces}
    _refuse_tied(base.config, saved, folder.path)
    for module, linear in linears.items():
        wanted |= zip(_named(module), linear.factors(given.rank(module)), strict=True)
    names = table.match(Table(()), wanted, folder, "an adapter of a model of these shapes")
    pattern = functools.partial(_pattern, base.config)
    settings = given.settings(linears, sorted({pattern(weight) for own in linears.values() for weight in own.a}))
    tuning = Tuning(settings, (*((pattern(own), True) for own in sorted(saved)), (".*", False)))
    try:
        model = tuning.apply(base, jax.random.key(0))
    except ValueError as error:
        raise CheckpointFolderError(f"{folder.path}: {error}") from error
    scales = {_named(module)[1]: given.scale(module) / settings.scale for module in linears}
    old = variables(model)
    factors = (f"{weight}/{part}" for weight in lora.adapters(model) for part in "ab")
    arrays = {path: np.zeros(old[path].shape, np.float32) for path in factors}
    arrays |= {path: np.array(_whole(old[path])) for path in saved}
    for tensor, theirs in wanted.items():
        values = folder.read(names[tensor])
        for entry, index in theirs.pieces:
            part = entry.take(values.__getitem__, theirs.sizes, {})
            # If other layers in the array have a larger rank, this fills a part of it.
            arrays[entry.path][index][tuple(map(slice, part.shape))] = part * np.float32(scales.get(tensor, 1))
    return replaced(model, {path: _filled(old[path], array) for path, array in arrays.items()}), tuning


def write(model, family_table: Table, path, base: str | None = None) -> None:
    """Writes a model's adapters as a folder, with whatever else trains.

    Modules with other trainable parameters are written whole (modules_to_save), and so is a classification head, which
    peft always expects. With several processes, all of them must call it.

    Args:
      family_table: of the model's family.
      path: a folder that does not exist or is empty; if writing fails, it is unchanged.
      base: name of the base model, from which peft's AutoPeftModel loads it.

    Raises:
      CheckpointFolderError: the folder can't be written, the model has no adapter, or the format can't represent it.
    """
    adapters, leaves = lora.adapters(model), _parameters(model.config)
    tensors: dict[str, np.ndarray] = {}
    scales: dict[str, float] = {}
    if not adapters:
        raise CheckpointFolderError("the model has no low-rank adapter to write")
    if why := unreadable(model.config, family_table, adapters):
        raise CheckpointFolderError(why)
    host = {weight: (_whole(w.a), _whole(w.b), w.scale) for weight, w in adapters.items()}
    linears = _linears(family_table, leaves)
    for module, linear in linears.items():
        own = {weight: host[weight] for weight in linear.a if weight in host}
        if not own:
            continue
        a, b, scale = _joined(linear, own)
        if a.size:
            tensors |= zip(_named(module), (a, b), strict=True)
            scales[module] = scale
    saved = trained(model).keys() - {f"{weight}/{part}" for weight in adapters for part in "ab"}
    saved |= {path for path in leaves if path.startswith("classifier/")}
    _refuse_tied(model.config, saved, path)
    kept = _kept(family_table, leaves, saved)
    if both := [module for module in scales if any(_module(tensor) == module for tensor in kept)]:
        raise CheckpointFolderError(
            f"{both[0]} has an adapter, and also a trainable parameter or a classification head, which peft stores "
            "whole; a module can have only one of the two"
        )
    parameters = variables(model)
    for tensor, theirs in kept.items():
        tensors[_MODEL + tensor] = joined = np.empty(theirs.shape, np.float32)
        for entry, index in theirs.pieces:
            entry.put(_whole(parameters[entry.path])[index], joined, theirs.sizes)
    if jax.process_index() != 0:
        return
    ranks = {module: len(tensors[_named(module)[0]]) for module in scales}
    described = peft_config.describe(
        model.config,
        ranks,
        scales,
        names={_module(n) for n in table.expected(family_table, leaves)},
        saved=sorted({_outermost(tensor) for tensor in kept}),
        fan_in_fan_out=any(linears[module].transposed for module in scales),
        base_model_name_or_path=base,
        lora_dropout=max(w.rate for w in adapters.values()),
    )
    files = {peft_config.NAME: json_text(described)}
    announced = {tensor: (array.shape, array.dtype) for tensor, array in tensors.items()}
    with Writer(path, announced, files, math.inf, FILES) as writer:  # peft reads one file
        for tensor, array in tensors.items():
            writer.write(tensor, array)


def unreadable(config: ModelConfig, family_table: Table, adapted: Collection[str]) -> str | None:
    """Returns why peft can't read adapters of these weights; None if it can."""
    for module, linear in _linears(family_table, _parameters(config)).items() if config.experts and adapted else ():
        if module.endswith(_OF_EXPERTS) and (own := [weight for weight in linear.a if weight in adapted]):
            return (
                f"peft can't read an adapter of {own[0]}: in a model with experts, it treats every "
                f"{module.rsplit('.', 1)[-1]} as an expert's, in a different format; leave feed_forward out of the "
                "adapter's targets, or merge the adapter and write the model"
            )
    return None


def _joined(linear: Linear, own: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns A [rank, in], B [out, rank] and the scale of their layer, from our adapters of the weights in it.

    For three weights whose outputs are concatenated in the layer (GPT-2's c_attn), where the first two have equal A:

        A = | A of 1 and 2 |        B = | B of 1       0    |
            |    A of 3    |            | B of 2       0    |
                                        |   0       B of 3  |

    Args:
      own: weight -> A, B and scale of its adapter, stacked like the weight.
    """
    blocks: list[list[np.ndarray]] = []  # for each distinct A: A, and the summed B of all weights that share it
    *_, scale = next(iter(own.values()))
    for weight, index in ((entry.path, index) for entry, index in linear.weight.pieces if entry.path in own):
        a_RI, b_OR = _in_place(linear, weight, index, own[weight], scale)
        same = next((block for block in blocks if np.array_equal(block[0], a_RI)), None)
        if same is None:
            blocks.append([a_RI, b_OR])
        else:
            same[1] += b_OR  # nonzero in different rows
    a_RI, b_OR = (np.concatenate(parts, axis) for axis, parts in enumerate(zip(*blocks, strict=True)))
    return a_RI, b_OR, scale


def _in_place(linear: Linear, weight: str, index: tuple[int, ...], adapter, scale: float) -> tuple[np.ndarray, ...]:
    """Returns A and B of one weight in their layer's layout.

    B is 0 in the outputs of other weights, and absorbs the ratio of the adapter's own scale to `scale`. Ranks that are
    0 in both are only padding of the stack, and are removed.
    """
    a, b, own_scale = adapter
    in_a, in_b = linear.factors(a.shape[-1])
    a_RI, b_OR = np.zeros(in_a.shape, np.float32), np.zeros(in_b.shape, np.float32)
    linear.a[weight].put(a[index], a_RI, in_a.sizes)
    linear.b[weight].put(b[index] * np.float32(own_scale / scale), b_OR, in_b.sizes)
    used_R = a_RI.any(1) | b_OR.any(0)
    return a_RI[used_R], b_OR[:, used_R]


def _linears(family_table: Table, leaves: dict[str, nnx.Variable]) -> dict[str, Linear]:
    """Returns their linear layers by module, 'model.layers.0.self_attn.q_proj'."""
    weights = {path: w for path, w in leaves.items() if w.get_metadata("inputs")}
    return {_module(n): _linear(own, weights) for n, own in table.expected(family_table, weights).items()}


def _linear(weight: Theirs, leaves: dict[str, nnx.Variable]) -> Linear:
    a: dict[str, Entry] = {}
    b: dict[str, Entry] = {}
    for entry, _ in weight.pieces:
        w = leaves[entry.path]
        dims = dict(zip(w.get_metadata("out_sharding"), entry.ours.split(), strict=True))
        inputs = [dims[dim] for dim in w.get_metadata("inputs")]
        outputs = [dim for dim in entry.dims if dim not in inputs]
        transposed = {*entry.groups[0]} <= {*inputs}
        into, out = entry.their_dims if transposed else entry.their_dims[::-1]
        for part, found, theirs, own, slot in (
            ("a", a, f"rank {into}", [*inputs, "rank"], None),
            ("b", b, f"{out} rank", ["rank", *outputs], entry.slot),
        ):
            ours = " ".join([*entry.stacked, *own])
            found[entry.path] = Entry(f"{entry.path}/{part}", entry.name, theirs, ours, slot, entry.layers)
    return Linear(weight, a, b, transposed)


def _kept(family_table: Table, leaves, saved: Collection[str]) -> dict[str, Theirs]:
    """Returns all tensors of the modules that contain one of these parameters."""
    tensors = table.expected(family_table, leaves)
    modules = {_outermost(n) for n, own in tensors.items() if any(entry.path in saved for entry, _ in own.pieces)}
    return {n: own for n, own in tensors.items() if _outermost(n) in modules}


def _refuse_tied(config: ModelConfig, saved: Collection[str], path) -> None:
    if config.tied and "inputs/tokens/table" in saved:
        raise CheckpointFolderError(
            f"{path}: the token table trained along with the adapter, and the output layer is tied to it; peft would "
            "train only one of them"
        )


def _parameters(config: ModelConfig) -> dict[str, nnx.Variable]:
    """Returns abstract variables of a model's parameters by name."""
    return variables(jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


def _whole(variable: nnx.Variable) -> np.ndarray:
    """Returns the whole array, on every process."""
    value = variable[...]
    return np.asarray(value if value.is_fully_addressable else process_allgather(value, tiled=True))


def _filled(variable: nnx.Variable, array: np.ndarray) -> nnx.Variable:
    """Returns the variable with these values and its old sharding and dtype."""
    old = variable[...]
    part = lambda index: array[index].astype(old.dtype)
    return variable.replace(jax.make_array_from_callback(old.shape, old.sharding, part))


def _pattern(config: ModelConfig, weight: str) -> str:
    """Returns a pattern that matches a weight, and the same weight of the stack's other layers."""
    where = patterns.layers(config, weight)
    return f"^{weight}$" if where is None else f"^{where[0]}/layer/.*/{where[2]}$"


def _named(module: str) -> list[str]:
    """Returns the names of a module's two tensors."""
    return [f"{_MODEL}{module}{factor}" for factor in _FACTORS]


def _module(tensor: str) -> str:
    return tensor.rsplit(".", 1)[0]


def _outermost(tensor: str) -> str:
    """Returns the module to save for a tensor: peft saves the whole head if it knows that there is one."""
    return "classifier" if tensor.startswith("classifier.") else _module(tensor)
