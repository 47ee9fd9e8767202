"""Gemma 1, 2 and 3 (text): norms scale by 1 + weight, embeddings by sqrt(width); from 2 on, norms after each part."""

import math

from model.config import ModelConfig
from model.interop import family, llama
from model.interop.family import Family, activation, norm

_ROWS = (
    *norm("attention_norm", "input_layernorm"),
    *norm("attention_after", "post_attention_layernorm"),
    *norm("feed_forward_norm", "pre_feedforward_layernorm"),
    *norm("feed_forward_after", "post_feedforward_layernorm"),
    *(row for row in llama.ROWS if "norm/" not in row[0] or row[0].startswith("attention/")),
)


def _common(c: dict) -> dict:
    bias = c.get("attention_bias", False)
    family.only(c, use_bidirectional_attention=False)
    return llama.common(c) | dict(
        norm_offset=1.0,
        embedding_scale=math.sqrt(c["hidden_size"]),
        activation=_activation(c),
        tied=c.get("tie_word_embeddings", True),
        qkv_bias=bias,
        out_bias=bias,
    )


def _activation(c: dict) -> str:
    """The first releases say `hidden_act` "gelu" and mean the tanh one; later ones have `hidden_activation`."""
    older = c.get("hidden_act") or "gelu"
    return activation(c.get("hidden_activation") or ("gelu_pytorch_tanh" if older == "gelu" else older))


def _second(c: dict, period: int) -> dict:
    """Of every `period` layers all but the last see a window."""
    return _common(c) | dict(
        norm_position="both",
        attention_scale=c["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=c.get("attn_logit_softcapping") or 0.0,
        logit_softcap=c.get("final_logit_softcapping") or 0.0,
        window=c["sliding_window"],
        attention_pattern=family.layer_pattern(c, ((i + 1) % period > 0 for i in range(c["num_hidden_layers"]))),
    )


def _third(c: dict) -> dict:
    local = (c.get("rope_parameters") or {}).get("sliding_attention") or {}
    theta = local.get("rope_theta", c.get("rope_local_base_freq", 10_000.0))
    rope = family.rope({"rope_theta": 1_000_000.0, **c}, "full_attention")
    return _second(c, c.get("sliding_window_pattern", 6)) | dict(qk_norm=True, rope=rope | dict(local_theta=theta))


def _describe(config: ModelConfig) -> dict:
    return llama.describe(config) | {"hidden_act": "gelu_pytorch_tanh", "attention_bias": config.qkv_bias}


def _describe_second(config: ModelConfig) -> dict:
    return _describe(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(config.attention_scale**-2),  # an integer in all that were published
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "sliding_window": config.window,
        "layer_types": family.layer_types(config),
    }


def _describe_third(config: ModelConfig) -> dict:
    local = {"rope_type": "default", "rope_theta": config.rope.local_theta or config.rope.theta}
    parameters = {"full_attention": family.rope_parameters(config), "sliding_attention": local}
    return _describe_second(config) | {"rope_parameters": parameters}


_table = lambda config: llama.table(config, _ROWS)

GEMMA = Family("GemmaForCausalLM", _common, _describe, llama.table)
GEMMA2 = Family("Gemma2ForCausalLM", lambda c: _second(c, 2), _describe_second, _table)
GEMMA3 = Family("Gemma3ForCausalLM", _third, _describe_third, _table)
