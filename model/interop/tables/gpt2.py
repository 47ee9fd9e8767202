"""GPT-2. Its Conv1D weights are [in, out]; one tensor concatenates queries, keys and values."""

import dataclasses
from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json.fields import DECODER_ONLY, Given, Known, names
from model.interop.family import Family, activation, layer_entries, norm, norm_entries, table_entry
from model.interop.table import Table

_QKV = (("query", "kv group head"), ("key", "kv head"), ("value", "kv head"))
_ROWS = (
    *norm("attention_norm", "ln_1"),
    *norm("feed_forward_norm", "ln_2"),
    *(
        (f"attention/{path}", "attn.c_attn.weight", f"embed (3 {dims})", f"embed {dims}", slot)
        for slot, (path, dims) in enumerate(_QKV)
    ),
    *(
        (f"attention/{path}_bias", "attn.c_attn.bias", f"(3 {dims})", dims, slot)
        for slot, (path, dims) in enumerate(_QKV)
    ),
    ("attention/out", "attn.c_proj.weight", "(kv group head) embed", "kv group head embed"),
    ("attention/out_bias", "attn.c_proj.bias", "embed", "embed"),
    ("feed_forward/up", "mlp.c_fc.weight", "embed mlp", "embed mlp"),
    ("feed_forward/up_bias", "mlp.c_fc.bias", "mlp", "mlp"),
    ("feed_forward/down", "mlp.c_proj.weight", "mlp embed", "mlp embed"),
    ("feed_forward/down_bias", "mlp.c_proj.bias", "embed", "embed"),
)


def _table(config: ModelConfig) -> Table:
    entries = (
        table_entry("inputs/tokens/table", "transformer.wte.weight"),
        table_entry("inputs/positions/table", "transformer.wpe.weight"),
        *layer_entries(config, _ROWS, "transformer.h.{layer}"),
        *norm_entries("norm", "transformer.ln_f"),
        table_entry("unembedding/table", "lm_head.weight"),
    )
    return Table(
        entries,
        ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
        renames=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),  # the hub's first files lack the prefix
        others=family.tied_names("transformer.wte.weight") if config.tied else {},
    )


def _table_to_read(c: Given, table: Table) -> Table:
    """Divides queries if `scale_attn_by_inverse_layer_idx` is set (Mistral, the GPT-2s of Stanford's CRFM).

    Layer i then divides its scores by i + 1. Our layers have one scale, and divided queries give the same scores.
    """
    if not c["scale_attn_by_inverse_layer_idx"]:
        return table
    queries = ("attention/query", "attention/query_bias")
    return table._replace(
        entries=tuple(
            dataclasses.replace(entry, divisor=lambda layer: layer + 1) if entry.path.endswith(queries) else entry
            for entry in table.entries
        )
    )


def _fields(c: Given) -> dict[str, Any]:
    return dict(
        vocab_size=c["vocab_size"],
        num_layers=c["n_layer"],
        embed_dim=c["n_embd"],
        num_heads=c["n_head"],
        mlp_dim=c["n_inner"] or 4 * c["n_embd"],
        max_length=c["n_positions"],
        norm="layernorm",
        norm_epsilon=c["layer_norm_epsilon"],
        position="learned",
        activation=activation(c, "activation_function"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=c["tie_word_embeddings"],
        init_std=c["initializer_range"],
    ) | ({} if c["scale_attn_weights"] else dict(attention_scale=1.0))


def _describe(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": family.activation_name(config, gelu_tanh="gelu_new"),
        "scale_attn_weights": config.attention_scale != 1,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
    }


_KNOWN = Known(
    dict(
        vocab_size=50257,
        n_positions=1024,
        n_embd=768,
        n_layer=12,
        n_head=12,
        n_inner=None,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        tie_word_embeddings=True,
    ),
    only=DECODER_ONLY,
    neutral=names(
        "attn_pdrop classifier_dropout embd_pdrop hidden_dropout is_decoder n_ctx reorder_and_upcast_attn resid_pdrop "
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj"
    ),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)
_CLASSES = dict.fromkeys(("GPT2LMHeadModel", "GPT2Model"), "language_model")
GPT2 = Family(_CLASSES, _KNOWN, _fields, _describe, _table, _table_to_read)
