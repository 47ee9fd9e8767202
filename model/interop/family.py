"""What a family's table file is made of: a Family, rows of entries for its layers, and readings of config.json.

config.json comes in two forms: transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from model.config import ModelConfig
from model.interop.layout import Entry
from model.interop.table import Table
from model.interop.tensorfile import CheckpointFolderError
from model.positions import yarn_factor


class Family(NamedTuple):
    """A kind of checkpoint: what `model_type` in config.json says."""

    architecture: str  # transformers' class, for `architectures`
    # config.json -> fields of ModelConfig. Beside its keys, `tensors` has the folder's, for what it does not say.
    fields: Callable[[dict], dict[str, Any]]
    describe: Callable[[ModelConfig], dict[str, Any]]  # and back
    table: Callable[[ModelConfig], Table]


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
            for path, name, theirs, ours, *slot in rows:
                yield Entry(
                    f"{stack}/segments/{number}/{place}/{path}",
                    f"{prefix}.{name}",
                    theirs,
                    f"layer {ours}",
                    *slot,
                    layers=range(start + place, end, length),
                )
        start = end


def norm(path: str, name: str, dim: str = "embed") -> list[Row]:
    return [(f"{path}/scale", f"{name}.weight", dim, dim), (f"{path}/bias", f"{name}.bias", dim, dim)]


def attention(q: str, k: str, v: str, o: str, ours: str = "attention") -> list[Row]:
    """Four torch Linear layers, whose weights are [out, in]; `ours` is where they lie in our Block."""
    heads = {"query": (q, "kv group head"), "key": (k, "kv head"), "value": (v, "kv head")}
    rows = []
    for path, (name, dims) in heads.items():
        rows += [(f"{ours}/{path}", f"{name}.weight", f"({dims}) embed", f"embed {dims}")]
        rows += [(f"{ours}/{path}_bias", f"{name}.bias", f"({dims})", dims)]
    rows += [(f"{ours}/out", f"{o}.weight", "embed (kv group head)", "kv group head embed")]
    return [*rows, (f"{ours}/out_bias", f"{o}.bias", "embed", "embed")]


def feed_forward(up: str, down: str, gate: str = "", ours: str = "feed_forward") -> list[Row]:
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


def table_entry(path: str, name: str) -> Entry:
    return Entry(path, name, "row embed", "row embed")


def linear_entries(path: str, name: str) -> list[Entry]:
    return [
        Entry(f"{path}/weight", f"{name}.weight", "out in", "in out"),
        Entry(f"{path}/bias", f"{name}.bias", "o", "o"),
    ]


def num_labels(c: dict) -> int:
    return len(c.get("id2label") or (0, 1))


def labels(config: ModelConfig) -> dict[str, Any]:
    """Fields of config.json about classes, whose names it makes up where the writer is given none."""
    return {
        "id2label": {str(label): f"LABEL_{label}" for label in range(config.num_labels)},
        "label2id": {f"LABEL_{label}": label for label in range(config.num_labels)},
    }


_NORM = (("scale", "weight"), ("bias", "bias"))

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def activation(name: str) -> str:
    return known("activation", name, _ACTIVATIONS)


def known(field: str, value, choices):
    """`choices[value]`, or a message that says what this code can't read."""
    if value not in choices:
        raise CheckpointFolderError(f"config.json: {field} is {value!r}; known are {', '.join(map(str, choices))}")
    return choices[value]


def only(config: dict, **values) -> None:
    """Refuse what the model has no part for: fields that must have this value where they are given."""
    for field, value in values.items():
        if config.get(field, value) not in (value, None):
            raise CheckpointFolderError(f"config.json: {field} is {config[field]!r}; only {value!r} can be read")


def layer_pattern(config: dict, default: Iterable[bool]) -> tuple[str, ...]:
    """The kinds of attention that the layers cycle through, as few as there are (two models that cycle alike have the
    same ModelConfig): from `layer_types`, or from which layers a family makes local."""
    types = {"full_attention": "global", "sliding_attention": "local"}
    if config.get("layer_types"):
        return cycle(known("layer_types", kind, types) for kind in config["layer_types"])
    return cycle("local" if local else "global" for local in default)


def cycle(kinds: Iterable[str]) -> tuple[str, ...]:
    """The shortest pattern which, repeated and cut off, gives these kinds."""
    kinds = tuple(kinds)
    fits = (n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n])
    return kinds[: next(fits, len(kinds))]


def layer_types(config: ModelConfig) -> list[str]:
    names = {"global": "full_attention", "local": "sliding_attention"}
    pattern = config.attention_pattern
    return [names[pattern[layer % len(pattern)]] for layer in range(config.num_layers)]


_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


def rope(config: dict, kind: str = "") -> dict[str, Any]:
    """Fields of model.parts.Rope.

    Args:
      kind: which of `rope_parameters`, where there is one for each kind of layer.
    """
    given = config.get("rope_parameters") or {}
    given = given.get(kind, given) or {}
    given = {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_scaling") or {}), **given}
    scaling = known("rope type", given.get("rope_type", given.get("type", "default")), _SCALINGS)
    fields = dict(theta=float(given["rope_theta"]), scaling=scaling)
    if scaling != "none":
        fields["factor"] = float(given["factor"])
    if scaling in ("llama3", "yarn"):
        fields["original_length"] = given.get("original_max_position_embeddings") or config["max_position_embeddings"]
    if scaling == "llama3":
        fields |= dict(low_factor=float(given["low_freq_factor"]), high_factor=float(given["high_freq_factor"]))
    if scaling == "yarn":
        only(given, truncate=True)
        fields |= {name: float(given.get(name) or value) for name, value in (("beta_fast", 32), ("beta_slow", 1))}
        fields["attention_factor"] = _attention_factor(given, fields["factor"])
    return fields


def _attention_factor(given: dict, factor: float) -> float:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        return yarn_factor(factor, given["mscale"]) / yarn_factor(factor, given["mscale_all_dim"])
    return yarn_factor(factor)


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 has them."""
    r = config.rope
    found = {"rope_type": "default" if r.scaling == "none" else r.scaling, "rope_theta": r.theta}
    if r.scaling != "none":
        found["factor"] = r.factor
    if r.scaling in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = r.original_length
    if r.scaling == "llama3":
        found |= {"low_freq_factor": r.low_factor, "high_freq_factor": r.high_factor}
    if r.scaling == "yarn":
        found |= {"beta_fast": r.beta_fast, "beta_slow": r.beta_slow, "attention_factor": r.attention_factor}
    return found


def rope_of_transformers_4(parameters: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4 reads in place of `rope_parameters`."""
    whole, local = parameters.get("full_attention", parameters), parameters.get("sliding_attention")
    scaling = {key: value for key, value in whole.items() if key != "rope_theta"}
    found = {"rope_theta": whole["rope_theta"]}
    found["rope_scaling"] = None if whole["rope_type"] == "default" else scaling
    return found | ({"rope_local_base_freq": local["rope_theta"]} if local else {})
