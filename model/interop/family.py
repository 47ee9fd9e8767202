"""What a family's table file is made of: a Family, rows of entries for its layers, and readings of config.json."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from model.config import ModelConfig
from model.interop.config_json.fields import Given, Known
from model.interop.layout import Entry
from model.interop.table import Table


class Family(NamedTuple):
    """A kind of checkpoint: what `model_type` in config.json says."""

    # transformers' classes -> our head; the first with a head is what an export of such a model names.
    classes: Mapping[str, str]
    known: Known  # which fields of config.json are read, neutral or refused
    fields: Callable[[Given], dict[str, Any]]  # config.json -> fields of ModelConfig, but for the head's
    describe: Callable[[ModelConfig], dict[str, Any]]  # and back
    table: Callable[[ModelConfig], Table]
    # The table for a folder with this config.json, where its weights mean something else than those we write.
    table_to_read: Callable[[Given, Table], Table] = lambda given, table: table
    # Whether an output layer that the file lacks is the embedding table, even where config.json says it is not.
    ties_absent_head: bool = False


Part = TypeVar("Part")

# A row is (path inside our Block, their name inside a layer, theirs, ours[, slot]); see layout.Entry.
Row = tuple


def layer_entries(
    config: ModelConfig, rows: Iterable[Row], prefix: str, stack: str = "stack", num_layers: int = 0
) -> Iterator[Entry]:
    """An entry for each row and each stack of layers; `prefix` is their name of a layer, with {layer} in it."""
    rows, start = list(rows), 0
    for number, segment in enumerate(config.segments(num_layers)):
        length = len(segment.kinds)
        end = start + length * segment.repeats
        for place in range(length):
            layers = range(start + place, end, length)
            for path, name, theirs, ours, *slot in rows:
                own = f"{stack}/segments/{number}/{place}/{path}"
                yield Entry(own, f"{prefix}.{name}", theirs, f"layer {ours}", slot[0] if slot else None, layers)
        start = end


def needed(part: Part | None, name: str) -> Part:
    """A part of a config that every model of a family has.

    Raises:
      ValueError: this one has none, so it is of another family.
    """
    if part is None:
        raise ValueError(f"the model has no {name}")
    return part


def norm(path: str, name: str, dim: str = "embed") -> list[Row]:
    return [(f"{path}/scale", f"{name}.weight", dim, dim), (f"{path}/bias", f"{name}.bias", dim, dim)]


def attention(q: str, k: str, v: str, o: str, *, ours: str = "attention") -> list[Row]:
    """Four torch Linear layers, whose weights are [out, in]; `ours` is where they lie in our Block."""
    heads = {"query": (q, "kv group head"), "key": (k, "kv head"), "value": (v, "kv head")}
    rows = []
    for path, (name, dims) in heads.items():
        rows += [(f"{ours}/{path}", f"{name}.weight", f"({dims}) embed", f"embed {dims}")]
        rows += [(f"{ours}/{path}_bias", f"{name}.bias", f"({dims})", dims)]
    rows += [(f"{ours}/out", f"{o}.weight", "embed (kv group head)", "kv group head embed")]
    return [*rows, (f"{ours}/out_bias", f"{o}.bias", "embed", "embed")]


def feed_forward(up: str, down: str, gate: str = "", *, ours: str = "feed_forward") -> list[Row]:
    """Two or three torch Linear layers; `ours` is where they lie in our Block."""
    rows = []
    for path, name in (("gate", gate), ("up", up)):
        if name:
            rows += [(f"{ours}/{path}", f"{name}.weight", "mlp embed", "embed mlp")]
            rows += [(f"{ours}/{path}_bias", f"{name}.bias", "mlp", "mlp")]
    rows += [(f"{ours}/down", f"{down}.weight", "embed mlp", "mlp embed")]
    return [*rows, (f"{ours}/down_bias", f"{down}.bias", "embed", "embed")]


def experts(router: str, up: str, down: str, gate: str = "") -> list[Row]:
    """A router and its experts, torch Linear layers; names of experts have {expert} in them."""
    rows = [("feed_forward/router", f"{router}.weight", "expert embed", "embed expert")]
    for path, name in (("gate", gate), ("up", up)):
        rows += [(f"feed_forward/experts_{path}", f"{name}.weight", "mlp embed", "expert embed mlp")] if name else []
    return [*rows, ("feed_forward/experts_down", f"{down}.weight", "embed mlp", "expert mlp embed")]


def norm_entries(path: str, name: str) -> list[Entry]:
    return [Entry(f"{path}/{ours}", f"{name}.{theirs}", "embed", "embed") for ours, theirs in _NORM]


def tied_names(table: str) -> dict[str, tuple[str, ...]]:
    """Table.others of a model whose output layer is the embedding table: a file may hold it under both names."""
    return {table: ("lm_head.weight",)}


def table_entry(path: str, name: str) -> Entry:
    return Entry(path, name, "row embed", "row embed")


def linear_entries(path: str, name: str) -> list[Entry]:
    return [
        Entry(f"{path}/weight", f"{name}.weight", "out in", "in out"),
        Entry(f"{path}/bias", f"{name}.bias", "o", "o"),
    ]


def labels(config: ModelConfig) -> dict[str, Any]:
    """Fields of config.json about classes, whose names it makes up where the writer is given none."""
    return {
        "id2label": {str(label): f"LABEL_{label}" for label in range(config.num_labels)},
        "label2id": {f"LABEL_{label}": label for label in range(config.num_labels)},
    }


_NORM = (("scale", "weight"), ("bias", "bias"))

# transformers' names of our activations; the first is what an export says where a family has no habit of its own.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}


def activation(c: Given, field: str) -> str:
    return known(field, c[field], ACTIVATIONS)


def activation_name(config: ModelConfig, **names: str) -> str:
    """What transformers calls the config's activation; `names`: a family's own names, by ours."""
    own = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())} | names
    return own[config.activation]


def known(field: str, value, choices: Mapping):
    """`choices[value]`, or a message that says what this code can't read."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{field} is {value!r}; known are {', '.join(map(str, choices))}")
    return choices[value]


_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def attention_kinds(c: Given, local: Callable[[int], bool], window: int | None) -> dict[str, Any]:
    """Fields of the config about windows: from `layer_types`, or from which layers a family makes local.

    Args:
      local: whether the family gives this layer a window, where config.json has no layer_types.
      window: positions that a token of a local layer sees; None: layers have no window.
    """
    count, types = c["num_hidden_layers"], c["layer_types"]
    kinds = ["local" if local(layer) else "global" for layer in range(count)]
    if types is not None:
        if not isinstance(types, list | tuple) or len(types) != count:
            raise ValueError(f"layer_types is {types!r}; it must name the kind of each of the {count} layers")
        kinds = [known("layer_types", kind, _KINDS) for kind in types]
    if "local" not in kinds:
        return {}
    if not window:
        unused = " and use_sliding_window is false" if c["use_sliding_window"] is False else ""
        raise ValueError(
            f"some layers have a window ({'by layer_types' if types else 'as in all models of this family'}), but "
            f"sliding_window is {c['sliding_window']!r}{unused}"
        )
    return dict(window=window, attention_pattern=cycle(kinds))


def cycle(kinds: Iterable[str]) -> tuple[str, ...]:
    """The shortest pattern which, repeated and cut off, gives these kinds. Two models whose layers cycle alike have the
    same ModelConfig."""
    kinds = tuple(kinds)
    fits = (n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n])
    return kinds[: next(fits, len(kinds))]


def layer_types(config: ModelConfig) -> list[str]:
    names = {"global": "full_attention", "local": "sliding_attention"}
    pattern = config.attention_pattern
    return [names[pattern[layer % len(pattern)]] for layer in range(config.num_layers)]
