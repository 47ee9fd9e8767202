"""BLOOM: ALiBi, a norm after the embedding; queries, keys and values of each head are interleaved in one tensor."""

from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json.fields import DECODER_ONLY, Given, Known, names
from model.interop.family import Family, layer_entries, norm, norm_entries, table_entry
from model.interop.table import Table
from model.interop.tables import llama

_QKV = (("query", "kv group", "kv group head"), ("key", "kv", "kv head"), ("value", "kv", "kv head"))
_ROWS = (
    *norm("attention_norm", "input_layernorm"),
    *norm("feed_forward_norm", "post_attention_layernorm"),
    *(
        (f"attention/{path}", "self_attention.query_key_value.weight", f"({n} 3 head) embed", f"embed {dims}", slot)
        for slot, (path, n, dims) in enumerate(_QKV)
    ),
    *(
        (f"attention/{path}_bias", "self_attention.query_key_value.bias", f"({n} 3 head)", dims, slot)
        for slot, (path, n, dims) in enumerate(_QKV)
    ),
    ("attention/out", "self_attention.dense.weight", "embed (kv group head)", "kv group head embed"),
    ("attention/out_bias", "self_attention.dense.bias", "embed", "embed"),
    *family.feed_forward("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)


def _table(config: ModelConfig) -> Table:
    entries = (
        table_entry("inputs/tokens/table", "transformer.word_embeddings.weight"),
        *norm_entries("inputs/norm", "transformer.word_embeddings_layernorm"),
        *layer_entries(config, _ROWS, "transformer.h.{layer}"),
        *norm_entries("norm", "transformer.ln_f"),
        table_entry("unembedding/table", "lm_head.weight"),
    )
    tied = family.tied_names("transformer.word_embeddings.weight") if config.tied else {}
    return Table(entries, renames=((r"^(?=(word_embeddings|h|ln_f)[._])", "transformer."),), others=tied)


def _fields(c: Given) -> dict[str, Any]:
    width = c["hidden_size"]
    return dict(
        vocab_size=c["vocab_size"],
        num_layers=c["n_layer"],
        embed_dim=width,
        num_heads=c["n_head"],
        mlp_dim=4 * width,
        max_length=c["seq_length"] or 2048,  # ALiBi has no limit
        norm="layernorm",
        norm_epsilon=c["layer_norm_epsilon"],
        embedding_norm=True,
        position="alibi",
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=c["tie_word_embeddings"],
        init_std=c["initializer_range"],
    )


def _describe(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "hidden_size": config.embed_dim,
        "n_head": config.num_heads,
        "seq_length": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
    }


_KNOWN = Known(
    dict(
        vocab_size=250880,
        hidden_size=64,
        n_layer=2,
        n_head=8,
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        tie_word_embeddings=True,
    ),
    only=DECODER_ONLY
    | {
        "apply_residual_connection_post_layernorm": (False,),
        "n_inner": (None,),
        "offset_alibi": (100,),
        "skip_bias_add": (True,),
        "skip_bias_add_qkv": (False,),
        "slow_but_exact": (False,),  # in transformers, True skips biases
    },
    neutral=names(
        "attention_dropout attention_softmax_in_fp32 bias_dropout_fusion hidden_dropout is_decoder "
        "masked_softmax_fusion pretraining_tp"
    ),
    older=names("seq_length"),
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
)
BLOOM = Family(llama.classes("Bloom"), _KNOWN, _fields, _describe, _table)
