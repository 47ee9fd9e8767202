"""Rotary positions in config.json: transformers 5's `rope_parameters`, 4's `rope_theta` and `rope_scaling`."""

import math
from collections.abc import Mapping
from typing import Any

from model.attention.positions import yarn_factor
from model.config import ModelConfig
from model.interop.config_json.fields import Given, names
from model.interop.family import known

_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
_KNOWN = names(
    "rope_type type rope_theta factor original_max_position_embeddings low_freq_factor high_freq_factor beta_fast "
    "beta_slow mscale mscale_all_dim attention_factor truncate partial_rotary_factor finetuned"
)
# Fields that a family with rotary positions reads in addition to its own, because transformers 4 wrote them.
OLDER = names("rope_theta rope_scaling original_max_position_embeddings")


def read(c: Given, theta: float = 10_000.0) -> dict[str, Any]:
    """Returns the fields of model.parts.Rope. As in transformers, `rope_scaling` overrides `rope_parameters`.

    Args:
      theta: the family's default in transformers.
    """
    field = "rope_scaling" if c["rope_scaling"] else "rope_parameters"
    return read_object(c, c[field] or {}, field, theta if c["rope_theta"] is None else c["rope_theta"])


def read_object(c: Given, given: Mapping[str, Any], where: str, theta: float) -> dict[str, Any]:
    """Returns the same for one object `given`, config.json's field `where`; `theta` is its default rope_theta."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; it must be an object")
    if unknown := sorted(set(given) - _KNOWN):
        raise ValueError(f"{where}.{unknown[0]} is {given[unknown[0]]!r}; the field is not known here")
    for field, value in dict(partial_rotary_factor=1, truncate=True).items():
        if given.get(field, value) != value:
            raise ValueError(f"{where}.{field} is {given[field]!r}; only {value!r} can be read")
    types = [given[field] for field in ("rope_type", "type") if given.get(field)] or ["default"]
    scaling = known(f"{where}.rope_type", types[0] if types[0] == types[-1] else types, _SCALINGS)

    def number(field: str, default: float | None = None) -> float:
        value = given.get(field) if given.get(field) is not None else default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ValueError(f"{where}.{field} is {value!r}; the type {types[0]} needs a number")
        return float(value)

    fields: dict[str, Any] = dict(theta=number("rope_theta", theta), scaling=scaling)
    if scaling in ("llama3", "yarn"):
        length = c["original_max_position_embeddings"] or given.get("original_max_position_embeddings")
        length = c["max_position_embeddings"] if length is None else length
        if type(length) is not int or length < 1:
            raise ValueError(f"{where}.original_max_position_embeddings is {length!r}; it must be a whole number")
        fields["original_length"] = length
    if scaling != "none":
        stretched = c["max_position_embeddings"] / fields["original_length"] if scaling == "yarn" else None
        fields["factor"] = number("factor", stretched)
    if not fields["theta"]:
        raise ValueError("rope_theta is 0; it must be above 0")
    if scaling == "llama3":
        fields |= dict(low_factor=number("low_freq_factor"), high_factor=number("high_freq_factor"))
        if fields["low_factor"] >= fields["high_factor"]:
            raise ValueError(f"{where}.low_freq_factor must be less than high_freq_factor")
    if scaling == "yarn":
        # transformers treats 0 as absent.
        fields |= {name: number(name, value) or value for name, value in (("beta_fast", 32.0), ("beta_slow", 1.0))}
        default = yarn_factor(fields["factor"])
        weights = [number(name, 0.0) for name in ("mscale", "mscale_all_dim")]
        if all(weights):
            default = yarn_factor(fields["factor"], weights[0]) / yarn_factor(fields["factor"], weights[1])
        fields["attention_factor"] = number("attention_factor", default)
    return fields


def describe(config: ModelConfig) -> dict[str, Any]:
    """Returns `rope_parameters` in transformers 5's form."""
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


def of_transformers_4(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that transformers 4 reads instead of `rope_parameters`."""
    whole, local = parameters.get("full_attention", parameters), parameters.get("sliding_attention")
    scaling = {key: value for key, value in whole.items() if key != "rope_theta"}
    found = {"rope_theta": whole["rope_theta"]}
    found["rope_scaling"] = None if whole["rope_type"] == "default" else scaling
    return found | ({"rope_local_base_freq": local["rope_theta"]} if local else {})
