"""Gemma 1, 2 and 3 (text): norms scale by 1 + weight, embeddings by sqrt(width); from 2 on, norms follow each part."""

import math
from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json import rope
from model.interop.config_json.fields import Given
from model.interop.family import Family, attention_kinds, norm
from model.interop.tables import llama

_ROWS = (
    *norm("attention_norm", "input_layernorm"),
    *norm("attention_after", "post_attention_layernorm"),
    *norm("feed_forward_norm", "pre_feedforward_layernorm"),
    *norm("feed_forward_after", "post_feedforward_layernorm"),
    *(row for row in llama.ROWS if "norm/" not in row[0] or row[0].startswith("attention/")),
)


def _common(c: Given, act: str, turned: dict[str, Any] | None = None) -> dict[str, Any]:
    scales = dict(norm_offset=1.0, embedding_scale=math.sqrt(c["hidden_size"]))
    return llama.common(c, turned, act) | llama.biases(c) | scales


def _first(c: Given) -> dict[str, Any]:
    """Reads Gemma 1. In the first releases, `hidden_act` "gelu" means the tanh approximation.

    They also have a `hidden_activation`, which transformers 5 ignores; it must agree.
    """
    fields = _common(c, "hidden_act")
    if c["hidden_act"] == "gelu":
        fields["activation"] = "gelu_tanh"
    _agrees(c, "hidden_activation", fields["activation"])
    return fields


def _agrees(c: Given, field: str, wanted: str) -> None:
    """Refuses an older activation field that contradicts the one that transformers reads."""
    if c[field] is not None and family.activation(c, field) != wanted:
        raise ValueError(f"{field} is {c[field]!r}, but the model's activation is {wanted}; they must be the same")


def _second(c: Given, period: int = 2, turned: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads Gemma 2. All but the last of every `period` layers have a window."""
    fields = _common(c, "hidden_activation", turned)
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        if c[field] == 0:
            raise ValueError(f"{field} is {c[field]!r}; it must be above 0, or null for no cap")
    _agrees(c, "hidden_act", fields["activation"])
    return (
        fields
        | dict(
            norm_position="both",
            attention_scale=c["query_pre_attn_scalar"] ** -0.5,
            attention_softcap=c["attn_logit_softcapping"] or 0.0,
            logit_softcap=c["final_logit_softcapping"] or 0.0,
            window=c["sliding_window"] or 0,
        )
        | attention_kinds(c, lambda layer: (layer + 1) % period > 0, c["sliding_window"])
    )


def _third(c: Given) -> dict[str, Any]:
    """Reads Gemma 3. Local and global layers have separate rotary positions; `rope_scaling` is the global ones'."""
    given = c["rope_parameters"] or {}
    if not isinstance(given, dict) or set(given) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"rope_parameters is {given!r}; it must hold full_attention and sliding_attention")
    objects = {"rope_parameters.full_attention": given.get("full_attention"), "rope_scaling": c["rope_scaling"]}
    for field, value in objects.items():
        if not isinstance(value, dict | None):
            raise ValueError(f"{field} is {value!r}; it must be an object")
    whole = (given.get("full_attention") or {}) | (c["rope_scaling"] or {})
    turned = rope.read_object(
        c, whole, "rope_parameters.full_attention", 1_000_000.0 if c["rope_theta"] is None else c["rope_theta"]
    )
    where, theta = "rope_parameters.sliding_attention", c["rope_local_base_freq"]
    local = rope.read_object(c, given.get("sliding_attention") or {}, where, 10_000.0 if theta is None else theta)
    if local["scaling"] != "none":
        raise ValueError(f"{where}.rope_type is {local['scaling']!r}; only 'default' can be read")
    period, written = c["sliding_window_pattern"] or 6, c["_sliding_window_pattern"]
    if c["layer_types"] is None and written not in (None, period):
        raise ValueError(
            f"_sliding_window_pattern is {written!r}, but transformers would use {period}; add layer_types"
        )
    return _second(c, period, turned | dict(local_theta=local["theta"])) | dict(qk_norm=True)


def _describe(config: ModelConfig) -> dict[str, Any]:
    act = family.activation_name(config, gelu="gelu_python")  # in Gemma, "gelu" means the tanh approximation
    return llama.describe(config) | {"hidden_act": act, "attention_bias": config.qkv_bias}


def _describe_second(config: ModelConfig) -> dict[str, Any]:
    described = _describe(config)
    return described | {
        "hidden_activation": described["hidden_act"],
        "query_pre_attn_scalar": round(config.attention_scale**-2),  # an integer in all published models
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "sliding_window": config.window or None,
        "layer_types": family.layer_types(config),
    }


def _describe_third(config: ModelConfig) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": config.rope.local_theta or config.rope.theta}
    parameters = {"full_attention": rope.describe(config), "sliding_attention": local}
    return _describe_second(config) | {"rope_parameters": parameters}


_READ: dict[str, Any] = dict(
    vocab_size=256000,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    attention_bias=False,
    head_dim=256,
)
_FIRST = _READ | dict(
    hidden_size=3072,
    intermediate_size=24576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    hidden_act="gelu_pytorch_tanh",
)
_SECOND = _READ | dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    hidden_act=...,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    sliding_window=4096,
    layer_types=None,
    final_logit_softcapping=30.0,
    attn_logit_softcapping=50.0,
)
_THIRD = _SECOND | dict(
    vocab_size=262_208,
    max_position_embeddings=131_072,
    final_logit_softcapping=None,
    attn_logit_softcapping=None,
)
_OLDER = "rope_local_base_freq sliding_window_pattern _sliding_window_pattern"
_CAUSAL = {"use_bidirectional_attention": (None, False)}
_table = lambda config: llama.table(config, _ROWS)

GEMMA = Family(
    llama.classes("Gemma"), llama.known("hidden_activation", only=_CAUSAL, **_FIRST), _first, _describe, llama.table
)
GEMMA2 = Family(
    llama.classes("Gemma2"), llama.known("hidden_act", only=_CAUSAL, **_SECOND), _second, _describe_second, _table
)
GEMMA3 = Family(
    {"Gemma3ForCausalLM": "language_model", "Gemma3TextModel": "language_model"},
    llama.known(f"hidden_act {_OLDER}", only=_CAUSAL, **_THIRD),
    _third,
    _describe_third,
    _table,
)
