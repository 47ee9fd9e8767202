"""Completes recorded configs: a field that a config lacks has the default of the code that reads it.

A default is what runs did before the field existed, so configs of older versions keep their meaning.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from configs.parts.defaults import DEFAULTS
from data.examples import kinds
from data.rows import augment, corrupt
from model.adapt import tuning
from model.config import ModelConfig
from model.parts import Experts, Latent, Rope
from train.objectives import table

_PARTS = {
    "rope": Rope,
    "latent": Latent,
    "experts": Experts,
}  # blocks of `model`; each is None if the model has no such part


def flat(tree: dict, prefix: str = "") -> dict:
    """Returns nested fields as one dict, by their names with dots."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def completed(fields: dict) -> dict:
    """Returns nested fields, in JSON's types, with the defaults of all fields that are missing.

    An imported model or adapter has no `data`, because no run trained it here. It gets no sources, and rows as long as
    the model allows.
    """
    model = fields["model"]
    found = DEFAULTS | {
        "model": _model(model),
        "adapt": _adapt(_name(fields, "adapt", "method")),
        "objective": table.fields(_name(fields, "objective", "name")) | {"name": DEFAULTS["objective"]["name"]},
    }
    if "data" in fields:
        found["data"] = _data(_name(fields["data"], "corruption", "kind"))
    else:
        found["data"] = DEFAULTS["data"] | {"sources": (), "seq_len": model["max_length"]}
    return _filled(json.loads(json.dumps(found)), fields)


def _name(fields: Mapping, block: str, field: str) -> str:
    """Returns the value of the field that decides which other fields a block has."""
    default = (DEFAULTS if block in DEFAULTS else DEFAULTS["data"])[block][field]
    return fields.get(block, {}).get(field, default)


def _model(given: dict) -> dict:
    found = _of(ModelConfig)
    for name, part in _PARTS.items():
        if isinstance(given.get(name), dict) or found[name] is not None:
            found[name] = _of(part)
    return found


def _adapt(method: str) -> dict:
    kind = tuning.METHODS.get(method)
    own = {} if kind is None else _of(kind)
    if own.pop("init_ids", None) is not None:  # a config has the text, from which the run's tokenizer makes the ids
        own["init_text"] = ""
    return {"method": DEFAULTS["adapt"]["method"]} | own | tuning.BASE


def _data(corruption: str) -> dict:
    fields: Mapping[str, Any] = corrupt.FIELDS.get(corruption, {})
    corrupted = {"kind": "none", **fields}
    own = {"augment": augment.FIELDS, "corruption": corrupted}
    return DEFAULTS["data"] | {name: dict(kind.fields) for name, kind in kinds.KINDS.items()} | own


def _of(kind: type) -> dict:
    """Returns the defaults of a dataclass; fields without one are left out."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _filled(defaults: dict, given: dict) -> dict:
    """Returns `given`, with the fields that it lacks, at any depth, taken from `defaults`."""
    found = defaults | given
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            found[name] = _filled(defaults[name], value)
    return found
