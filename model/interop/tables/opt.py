"""OPT: learned positions start at row 2; the 350m is post-norm, with a narrow embedding projected on both sides."""

from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json.fields import DECODER_ONLY, Given, Known, names
from model.interop.family import Family, activation, layer_entries, norm, norm_entries, table_entry
from model.interop.layout import Entry
from model.interop.table import Table
from model.interop.tables import llama

_OFFSET = 2
_EPSILON = 1e-5  # hard-coded in OPT: no config field sets it
_ROWS = (
    *norm("attention_norm", "self_attn_layer_norm"),
    *norm("feed_forward_norm", "final_layer_norm"),
    *family.attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *family.feed_forward("fc1", "fc2"),
)


def _table(config: ModelConfig) -> Table:
    entries = (
        table_entry("inputs/tokens/table", "model.decoder.embed_tokens.weight"),
        table_entry("inputs/positions/table", "model.decoder.embed_positions.weight"),
        Entry("inputs/project/weight", "model.decoder.project_in.weight", "embed narrow", "narrow embed"),
        *layer_entries(config, _ROWS, "model.decoder.layers.{layer}"),
        *norm_entries("norm", "model.decoder.final_layer_norm"),
        Entry("unembedding/project/weight", "model.decoder.project_out.weight", "narrow embed", "embed narrow"),
        table_entry("unembedding/table", "lm_head.weight"),
    )
    tied = family.tied_names("model.decoder.embed_tokens.weight") if config.tied else {}
    return Table(entries, renames=((r"^decoder\.", "model.decoder."),), others=tied)


def _fields(c: Given) -> dict[str, Any]:
    before = c["do_layer_norm_before"]
    return dict(
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["ffn_dim"],
        max_length=c["max_position_embeddings"],
        table_dim=c["word_embed_proj_dim"] or c["hidden_size"],
        norm="layernorm",
        norm_epsilon=_EPSILON,
        norm_position="pre" if before else "post",
        final_norm=before and not c["_remove_final_layer_norm"],
        position="learned",
        position_offset=_OFFSET,
        activation=activation(c, "activation_function"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=c["tie_word_embeddings"],
        init_std=c["init_std"],
    )


def _describe(config: ModelConfig) -> dict[str, Any]:
    before = config.norm_position == "pre"
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "word_embed_proj_dim": config.table_dim,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "activation_function": family.activation_name(config, gelu_tanh="gelu_new"),
        "tie_word_embeddings": config.tied,
        "init_std": config.init_std,
    }


_KNOWN = Known(
    dict(
        vocab_size=50272,
        hidden_size=768,
        num_hidden_layers=12,
        ffn_dim=3072,
        max_position_embeddings=2048,
        do_layer_norm_before=True,
        _remove_final_layer_norm=False,
        word_embed_proj_dim=None,
        num_attention_heads=12,
        activation_function="relu",
        init_std=0.02,
        tie_word_embeddings=True,
    ),
    only=DECODER_ONLY | {"enable_bias": (True,), "layer_norm_elementwise_affine": (True,)},
    neutral=names("activation_dropout attention_dropout dropout is_decoder layerdrop"),
)
OPT = Family(llama.classes("OPT"), _KNOWN, _fields, _describe, _table)
