"""LLaMA and those built like it: Mistral, Qwen2, Qwen3."""

from model.config import ModelConfig
from model.interop import family
from model.interop.family import Family, activation, layer_entries, norm, norm_entries, table_entry
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
    entries = (
        table_entry("inputs/tokens/table", "model.embed_tokens.weight"),
        *layer_entries(config, rows, "model.layers.{layer}"),
        *norm_entries("norm", "model.norm"),
        table_entry("unembedding/table", "lm_head.weight"),
    )
    return Table(entries, ignored=(*IGNORED, r"lm_head\.weight") if config.tied else IGNORED)


def common(c: dict) -> dict:
    """What all of them say in the same way."""
    heads = c["num_attention_heads"]
    return dict(
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=heads,
        num_kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        mlp_dim=c["intermediate_size"],
        max_length=c["max_position_embeddings"],
        norm="rmsnorm",
        norm_epsilon=c["rms_norm_eps"],
        position="rotary",
        rope=family.rope(c),
        activation=activation(c.get("hidden_act", "silu")),
        gated=True,
        tied=c.get("tie_word_embeddings", False),
        init_std=c.get("initializer_range", 0.02),
    )


def describe(config: ModelConfig) -> dict:
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
        "rope_parameters": family.rope_parameters(config),
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
    }


def _llama(c: dict) -> dict:
    bias = c.get("attention_bias", False)
    return common(c) | dict(qkv_bias=bias, out_bias=bias, mlp_bias=c.get("mlp_bias", False))


def mistral(c: dict) -> dict:
    window = c.get("sliding_window")
    return common(c) | (dict(window=window, attention_pattern=("local",)) if window else {})


def qwen(c: dict) -> dict:
    """Layers from `max_window_layers` on see a window, where it is used at all."""
    fields = common(c)
    if c.get("use_sliding_window") and c.get("sliding_window"):
        late = (layer >= c["max_window_layers"] for layer in range(c["num_hidden_layers"]))
        fields |= dict(window=c["sliding_window"], attention_pattern=family.layer_pattern(c, late))
    return fields


def qwen3(c: dict) -> dict:
    bias = c.get("attention_bias", False)
    return qwen(c) | dict(qk_norm=True, qkv_bias=bias, out_bias=bias)


def describe_qwen(config: ModelConfig) -> dict:
    windowed = "local" in config.attention_pattern
    first = family.layer_types(config).index("sliding_attention") if windowed else config.num_layers
    return describe(config) | {
        "use_sliding_window": windowed,
        "sliding_window": config.window or None,
        "max_window_layers": first,
        "layer_types": family.layer_types(config),
    }


LLAMA = Family(
    "LlamaForCausalLM",
    _llama,
    lambda config: describe(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
    table,
)
MISTRAL = Family(
    "MistralForCausalLM", mistral, lambda config: describe(config) | {"sliding_window": config.window or None}, table
)
QWEN2 = Family("Qwen2ForCausalLM", lambda c: qwen(c) | dict(qkv_bias=True), describe_qwen, table)
QWEN3 = Family(
    "Qwen3ForCausalLM", qwen3, lambda config: describe_qwen(config) | {"attention_bias": config.qkv_bias}, table
)
