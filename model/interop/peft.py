"""Low-rank adapters as Hugging Face's peft keeps them: adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [rank, in]
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight    [out, rank]

Where A and B of a weight of ours lie there follows from where the weight lies, so the families' tables serve here too.

A linear layer of theirs has one A, even where it is several weights of ours (GPT-2's c_attn): read, each of these gets
a copy of A and its part of B; written, weights with the same A have it once, and others beside each other, B being 0
where a rank is not a weight's own. Layers that lie in one array of ours have one rank: smaller ones are filled up with
zeros, which never train and are left out when written. One scale holds for all of an adapter of ours: where theirs
differ, B takes the difference. So both ways the function stays the same; how an adapter trains on does not, where A was
shared or scales differed.

Left out, with an error: DoRA, biases, adapters of embeddings and of other kinds, layers chosen by number; in writing,
feed-forward layers of models with experts.
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

FILES = "adapter_"  # what their names begin with
_MODEL = "base_model.model."  # what names of tensors begin with
_FACTORS = (".lora_A.weight", ".lora_B.weight")  # what they end with
# Ends of names that peft (0.21, with transformers 5) takes for experts in models that have any, wherever they stand.
_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


class Linear(NamedTuple):
    """One of their linear layers, and where the factors of our adapters on it lie."""

    weight: Theirs
    a: dict[str, Entry]  # by our weight
    b: dict[str, Entry]
    transposed: bool  # the weight is [in, out]

    def factors(self, rank: int) -> list[Theirs]:
        """A and B of this rank."""
        sizes, made = self.weight.sizes | {"rank": rank}, []
        for entries in (self.a, self.b):
            pieces = [Piece(entries[entry.path], index) for entry, index in self.weight.pieces]
            made.append(Theirs(pieces, sizes, pieces[0].entry.shape(sizes)))
        return made


def read(path, family_table: Table, base) -> tuple[nnx.Module, Tuning]:
    """(the model `base` with the adapter of a folder, the settings that make such a model).

    Args:
      family_table: of the base's family.

    Raises:
      CheckpointFolderError: no adapter, one of another kind or for another model; tensors missing, unexpected or of
        another shape, found before any is read.
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
            # A rank smaller than others in the array fills a part of it.
            arrays[entry.path][index][tuple(map(slice, part.shape))] = part * np.float32(scales.get(tensor, 1))
    return replaced(model, {path: _filled(old[path], array) for path, array in arrays.items()}), tuning


def write(model, family_table: Table, path, base: str | None = None) -> None:
    """The adapters of a model as a folder, and what else trains in it: the modules of that are written whole
    (modules_to_save), and so is a head of classes, which peft always looks for. In a run of several processes all of
    them call it.

    Args:
      family_table: of the model's family.
      path: a folder that does not exist, or is empty; afterwards it is complete, or as it was.
      base: name of the model that the adapters stand on, by which peft's AutoPeftModel loads it.

    Raises:
      CheckpointFolderError: the folder can't be written; the model has no adapter, or one without a place there.
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
            f"{both[0]} has an adapter, and beside it a parameter that trains or a head of classes, which peft keeps "
            "whole; it has one or the other"
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
    """Why peft can't read adapters of these weights; None: it can."""
    for module, linear in _linears(family_table, _parameters(config)).items() if config.experts and adapted else ():
        if module.endswith(_OF_EXPERTS) and (own := [weight for weight in linear.a if weight in adapted]):
            return (
                f"peft can't read an adapter of {own[0]}: where a model has experts, it takes every "
                f"{module.rsplit('.', 1)[-1]} for one of theirs, in a form of its own; leave feed_forward out of the "
                "adapter's targets, or merge the adapter and write the model"
            )
    return None


def _joined(linear: Linear, own: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """A [rank, in], B [out, rank] and the scale of their layer, from those of our weights in it.

    Of three weights whose outputs lie one below the other in the layer (GPT-2's c_attn), of which the first two have
    the same A:

        A = | A of 1 and 2 |        B = | B of 1       0    |
            |    A of 3    |            | B of 2       0    |
                                        |   0       B of 3  |

    Args:
      own: of our weights: A, B and scale of its adapter, stacked as the weight is.
    """
    blocks: list[list[np.ndarray]] = []  # of each A that there is: A, and B of all weights that have it
    *_, scale = next(iter(own.values()))
    for weight, index in ((entry.path, index) for entry, index in linear.weight.pieces if entry.path in own):
        a_RI, b_OR = _in_place(linear, weight, index, own[weight], scale)
        same = next((block for block in blocks if np.array_equal(block[0], a_RI)), None)
        if same is None:
            blocks.append([a_RI, b_OR])
        else:
            same[1] += b_OR  # in other rows
    a_RI, b_OR = (np.concatenate(parts, axis) for axis, parts in enumerate(zip(*blocks, strict=True)))
    return a_RI, b_OR, scale


def _in_place(linear: Linear, weight: str, index: tuple[int, ...], adapter, scale: float) -> tuple[np.ndarray, ...]:
    """A and B of one weight as they lie in their layer: B is 0 in the outputs of other weights, and takes what the
    adapter's own scale is more than `scale`. Ranks that are 0 in both only fill up the stack, and are left out."""
    a, b, own_scale = adapter
    in_a, in_b = linear.factors(a.shape[-1])
    a_RI, b_OR = np.zeros(in_a.shape, np.float32), np.zeros(in_b.shape, np.float32)
    linear.a[weight].put(a[index], a_RI, in_a.sizes)
    linear.b[weight].put(b[index] * np.float32(own_scale / scale), b_OR, in_b.sizes)
    used_R = a_RI.any(1) | b_OR.any(0)
    return a_RI[used_R], b_OR[:, used_R]


def _linears(family_table: Table, leaves: dict[str, nnx.Variable]) -> dict[str, Linear]:
    """By module, 'model.layers.0.self_attn.q_proj'."""
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
        sides = [f"({' '.join(group)})" for group in entry.groups]
        transposed = {*entry.groups[0]} <= {*inputs}
        into, out = sides if transposed else sides[::-1]
        for part, found, theirs, own, slot in (
            ("a", a, f"rank {into}", [*inputs, "rank"], None),
            ("b", b, f"{out} rank", ["rank", *outputs], entry.slot),
        ):
            ours = " ".join([*entry.stacked, *own])
            found[entry.path] = Entry(f"{entry.path}/{part}", entry.name, theirs, ours, slot, entry.layers)
    return Linear(weight, a, b, transposed)


def _kept(family_table: Table, leaves, saved: Collection[str]) -> dict[str, Theirs]:
    """All tensors of the modules that hold one of these parameters."""
    tensors = table.expected(family_table, leaves)
    modules = {_outermost(n) for n, own in tensors.items() if any(entry.path in saved for entry, _ in own.pieces)}
    return {n: own for n, own in tensors.items() if _outermost(n) in modules}


def _refuse_tied(config: ModelConfig, saved: Collection[str], path) -> None:
    if config.tied and "inputs/tokens/table" in saved:
        raise CheckpointFolderError(
            f"{path}: the table of tokens trained beside the adapter, and the output layer is tied to it; peft would "
            "train one of them alone"
        )


def _parameters(config: ModelConfig) -> dict[str, nnx.Variable]:
    """Shapes and dims of a model's parameters, by name."""
    return variables(jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


def _whole(variable: nnx.Variable) -> np.ndarray:
    """All of it, on every process."""
    value = variable[...]
    return np.asarray(value if value.is_fully_addressable else process_allgather(value, tiled=True))


def _filled(variable: nnx.Variable, array: np.ndarray) -> nnx.Variable:
    """With these values, where it is."""
    old = variable[...]
    part = lambda index: array[index].astype(old.dtype)
    return variable.replace(jax.make_array_from_callback(old.shape, old.sharding, part))


def _pattern(config: ModelConfig, weight: str) -> str:
    """Which finds it, and the weights in its place in the stack's other layers."""
    where = patterns.layers(config, weight)
    return f"^{weight}$" if where is None else f"^{where[0]}/layer/.*/{where[2]}$"


def _named(module: str) -> list[str]:
    """Its two tensors."""
    return [f"{_MODEL}{module}{factor}" for factor in _FACTORS]


def _module(tensor: str) -> str:
    return tensor.rsplit(".", 1)[0]


def _outermost(tensor: str) -> str:
    """The module to save for it: peft takes the whole head where it knows that there is one."""
    return "classifier" if tensor.startswith("classifier.") else _module(tensor)
