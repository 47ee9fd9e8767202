"""The building blocks of a family's table file: Family, rows of entries for its layers, and readers of config.json."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from model.config import ModelConfig
from model.interop.config_json.fields import Given, Known
from model.interop.layout import Entry
from model.interop.table import Table


class Family(NamedTuple):
    """A kind of checkpoint, identified by `model_type` in config.json."""

    # transformers' classes -> our head; an export names the first class with the model's head.
    classes: Mapping[str, str]
    known: Known  # which fields of config.json are read, neutral or refused
    fields: Callable[[Given], dict[str, Any]]  # config.json -> fields of ModelConfig, except the head's
    describe: Callable[[ModelConfig], dict[str, Any]]  # the inverse
    table: Callable[[ModelConfig], Table]
    # The table for reading a folder with this config.json, if its weights have another meaning than those we write.
    table_to_read: Callable[[Given, Table], Table] = lambda given, table: table
    # Whether a missing output layer is tied to the embedding table, even if config.json says it is not.
    ties_absent_head: bool = False


Part = TypeVar("Part")

# A row is (path inside our Block, their name inside a layer, their dims, our dims[, slot]); see layout.Entry.
Row = tuple


def layer_entries(
    config: ModelConfig, rows: Iterable[Row], prefix: str, stack: str = "stack", num_layers: int = 0
) -> Iterator[Entry]:
    """Yields an entry for each row and each stack of layers; `prefix` is their name of a layer, with {layer} in it."""
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
    """Returns a part of a config that all models of a family have.

    Raises:
      ValueError: the part is None, so the model belongs to another family.
    """
    if part is None:
        raise ValueError(f"the model has no {name}")
    return part


def norm(path: str, name: str, dim: str = "embed") -> list[Row]:
    """Returns rows of a norm's scale and bias."""
    return [(f"{path}/scale", f"{name}.weight", dim, dim), (f"{path}/bias", f"{name}.bias", dim, dim)]


def attention(q: str, k: str, v: str, o: str, *, ours: str = "attention") -> list[Row]:
    """Returns rows of attention's four torch Linear layers, weights [out, in]; `ours`: their path in our Block."""
    heads = {"query": (q, "kv group head"), "key": (k, "kv head"), "value": (v, "kv head")}
    rows = []
    for path, (name, dims) in heads.items():
        rows += [(f"{ours}/{path}", f"{name}.weight", f"({dims}) embed", f"embed {dims}")]
        rows += [(f"{ours}/{path}_bias", f"{name}.bias", f"({dims})", dims)]
    rows += [(f"{ours}/out", f"{o}.weight", "embed (kv group head)", "kv group head embed")]
    return [*rows, (f"{ours}/out_bias", f"{o}.bias", "embed", "embed")]


def feed_forward(up: str, down: str, gate: str = "", *, ours: str = "feed_forward") -> list[Row]:
    """Returns rows of a feed-forward's two or three torch Linear layers; `ours`: their path in our Block."""
    rows = []
    for path, name in (("gate", gate), ("up", up)):
        if name:
            rows += [(f"{ours}/{path}", f"{name}.weight", "mlp embed", "embed mlp")]
            rows += [(f"{ours}/{path}_bias", f"{name}.bias", "mlp", "mlp")]
    rows += [(f"{ours}/down", f"{down}.weight", "embed mlp", "mlp embed")]
    return [*rows, (f"{ours}/down_bias", f"{down}.bias", "embed", "embed")]


def experts(router: str, up: str, down: str, gate: str = "") -> list[Row]:
    """Returns rows of a router and its experts, torch Linear layers whose names contain {expert}."""
    rows = [("feed_forward/router", f"{router}.weight", "expert embed", "embed expert")]
    for path, name in (("gate", gate), ("up", up)):
        rows += [(f"feed_forward/experts_{path}", f"{name}.weight", "mlp embed", "expert embed mlp")] if name else []
    return [*rows, ("feed_forward/experts_down", f"{down}.weight", "embed mlp", "expert mlp embed")]


def norm_entries(path: str, name: str) -> list[Entry]:
    """Returns entries of a norm outside of the layers."""
    return [Entry(f"{path}/{ours}", f"{name}.{theirs}", "embed", "embed") for ours, theirs in _NORM]


def tied_names(table: str) -> dict[str, tuple[str, ...]]:
    """Returns Table.others of a model with tied embeddings, whose table a file may hold under both names."""
    return {table: ("lm_head.weight",)}


def table_entry(path: str, name: str) -> Entry:
    """Returns the entry of an embedding table."""
    return Entry(path, name, "row embed", "row embed")


def linear_entries(path: str, name: str) -> list[Entry]:
    """Returns entries of a torch Linear layer's weight and bias."""
    return [
        Entry(f"{path}/weight", f"{name}.weight", "out in", "in out"),
        Entry(f"{path}/bias", f"{name}.bias", "o", "o"),
    ]


def labels(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json's fields about classes, with generic names, which a writer may replace."""
    return {
        "id2label": {str(label): f"LABEL_{label}" for label in range(config.num_labels)},
        "label2id": {f"LABEL_{label}": label for label in range(config.num_labels)},
    }


_NORM = (("scale", "weight"), ("bias", "bias"))

# transformers' activation names -> ours; of several, an export writes the first unless the family prefers another.
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
    """Returns our name of the activation in a field of config.json."""
    return known(field, c[field], ACTIVATIONS)


def activation_name(config: ModelConfig, **names: str) -> str:
    """Returns transformers' name of the config's activation; `names`: the family's preferred names, by ours."""
    own = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())} | names
    return own[config.activation]


def known(field: str, value, choices: Mapping):
    """Returns `choices[value]`.

    Raises:
      ValueError: `value` is not one of the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{field} is {value!r}; choose from {', '.join(map(str, choices))}")
    return choices[value]


_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def attention_kinds(c: Given, local: Callable[[int], bool], window: int | None) -> dict[str, Any]:
    """Returns the config's fields about windows, from `layer_types` or from the family's rule.

    Args:
      local: whether the family gives a layer a window, used without layer_types.
      window: positions that a token of a local layer sees; None: windows are disabled.
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
    """Returns the shortest pattern that repeats to these kinds, so that equal models have equal ModelConfigs."""
    kinds = tuple(kinds)
    fits = (n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n])
    return kinds[: next(fits, len(kinds))]


def layer_types(config: ModelConfig) -> list[str]:
    """Returns `layer_types` of config.json."""
    names = {"global": "full_attention", "local": "sliding_attention"}
    pattern = config.attention_pattern
    return [names[pattern[layer % len(pattern)]] for layer in range(config.num_layers)]
