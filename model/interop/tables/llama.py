"""LLaMA and models with the same structure: Mistral, Qwen2, Qwen3."""

from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json import rope
from model.interop.config_json.fields import DECODER_ONLY, Given, Known, names
from model.interop.family import (
    Family,
    activation,
    attention_kinds,
    layer_entries,
    norm,
    norm_entries,
    table_entry,
)
from model.interop.table import Table

NORMS = (
    *norm("attention_norm", "input_layernorm"),
    *norm("feed_forward_norm", "post_attention_layernorm"),
)
ATTENTION = (
    *norm("attention/query_norm", "self_attn.q_norm", "head"),
    *norm("attention/key_norm", "self_attn.k_norm", "head"),
    *family.attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
)
FEED_FORWARD = tuple(family.feed_forward("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj"))
ROWS = (*NORMS, *ATTENTION, *FEED_FORWARD)
IGNORED = (r".*\.rotary_emb\.inv_freq",)


def table(config: ModelConfig, rows=ROWS) -> Table:
    """Returns the table of a model with these rows per layer."""
    entries = (
        table_entry("inputs/tokens/table", "model.embed_tokens.weight"),
        *layer_entries(config, rows, "model.layers.{layer}"),
        *norm_entries("norm", "model.norm"),
        table_entry("unembedding/table", "lm_head.weight"),
    )
    others = family.tied_names("model.embed_tokens.weight") if config.tied else {}
    return Table(entries, IGNORED, ((r"^(?=(embed_tokens|layers|norm)\.)", "model."),), others)


def classes(name: str) -> dict[str, str]:
    """Returns transformers' classes of a causal language model."""
    return dict.fromkeys((f"{name}ForCausalLM", f"{name}Model"), "language_model")


def known(older: str = "", neutral: str = "", only: dict | None = None, aliases=(), **read) -> Known:
    """Returns a family's field table: the fields that all share, and its own. Spaces separate field names.

    Args:
      read: fields -> defaults; `...` removes a shared field.
    """
    read = _READ | read
    return Known(
        {field: default for field, default in read.items() if default is not ...},
        only=DECODER_ONLY | (only or {}),
        neutral=names(f"attention_dropout hidden_dropout is_decoder pretraining_tp {neutral}"),
        older=rope.OLDER | names(older),
        aliases=dict(aliases),
    )


_READ: dict[str, Any] = dict(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=None,
    hidden_act="silu",
    max_position_embeddings=2048,
    initializer_range=0.02,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    rope_parameters=None,
)
MISTRAL_READ: dict[str, Any] = dict(
    intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=4096 * 32, head_dim=None
)
QWEN_READ: dict[str, Any] = dict(
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
)
EXPERTS = "output_router_logits router_aux_loss_coef router_jitter_noise"  # neutral: for training, or not scores


def common(c: Given, turned: dict[str, Any] | None = None, act: str = "hidden_act") -> dict[str, Any]:
    """Returns the fields that all these families store in the same way.

    Args:
      turned: fields of the rotary positions, if a family stores them in its own way.
      act: the field that names the activation.
    """
    heads = c["num_attention_heads"]
    return dict(
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=heads,
        num_kv_heads=c["num_key_value_heads"] or heads,
        head_dim=c["head_dim"] or c["hidden_size"] // heads,
        mlp_dim=c["intermediate_size"],
        max_length=c["max_position_embeddings"],
        norm="rmsnorm",
        norm_epsilon=c["rms_norm_eps"],
        position="rotary",
        rope=rope.read(c) if turned is None else turned,
        activation=activation(c, act),
        gated=True,
        tied=c["tie_word_embeddings"],
        init_std=c["initializer_range"],
    )


def describe(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json's fields that all these families share."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope.describe(config),
        "hidden_act": family.activation_name(config),
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
    }


def biases(c: Given) -> dict[str, bool]:
    """Returns the fields about attention's biases."""
    return dict(qkv_bias=c["attention_bias"], out_bias=c["attention_bias"])


def everywhere(c: Given) -> dict[str, Any]:
    """Returns the fields of a window in all layers, or in none."""
    window = c["sliding_window"]
    if window == 0:
        raise ValueError("sliding_window is 0; it must be at least 1, or null for no window")
    return dict(window=window, attention_pattern=("local",)) if window else {}


def late(c: Given) -> dict[str, Any]:
    """Returns the fields of a window in the layers from `max_window_layers` on, if windows are enabled."""
    window = c["sliding_window"] if c["use_sliding_window"] else None
    first = c["max_window_layers"]
    return attention_kinds(c, lambda layer: window is not None and layer >= first, window)


def describe_windows(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json's fields about windows, for Qwen."""
    windowed = "local" in config.attention_pattern
    first = family.layer_types(config).index("sliding_attention") if windowed else config.num_layers
    return {
        "use_sliding_window": windowed,
        "sliding_window": config.window or None,
        "max_window_layers": first,
        "layer_types": family.layer_types(config),
    }


LLAMA = Family(
    classes("Llama"),
    known(attention_bias=False, mlp_bias=False, head_dim=None),
    lambda c: common(c) | biases(c) | dict(mlp_bias=c["mlp_bias"]),
    lambda config: describe(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
    table,
)
MISTRAL = Family(
    classes("Mistral"),
    known(**MISTRAL_READ, sliding_window=4096),
    lambda c: common(c) | everywhere(c),
    lambda config: describe(config) | {"sliding_window": config.window or None},
    table,
)
QWEN2 = Family(
    classes("Qwen2"),
    known("head_dim", **QWEN_READ, max_window_layers=28, layer_types=None),
    lambda c: common(c) | late(c) | dict(qkv_bias=True),
    lambda config: describe(config) | describe_windows(config),
    table,
)
QWEN3 = Family(
    classes("Qwen3"),
    known(**QWEN_READ, max_window_layers=28, layer_types=None, head_dim=128, attention_bias=False),
    lambda c: common(c) | late(c) | biases(c) | dict(qk_norm=True),
    lambda config: describe(config) | describe_windows(config) | {"attention_bias": config.qkv_bias},
    table,
)
