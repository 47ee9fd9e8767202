"""GPT-2. Its Conv1D weights are [in, out]; queries, keys and values lie side by side in one tensor."""

from model.config import ModelConfig
from model.interop import family
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
        ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", *((r"lm_head\.weight",) if config.tied else ())),
        renames=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),  # the hub's first files
    )


def _fields(c: dict) -> dict:
    family.only(c, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return dict(
        vocab_size=c["vocab_size"],
        num_layers=c["n_layer"],
        embed_dim=c["n_embd"],
        num_heads=c["n_head"],
        mlp_dim=c.get("n_inner") or 4 * c["n_embd"],
        max_length=c["n_positions"],
        norm="layernorm",
        norm_epsilon=c["layer_norm_epsilon"],
        position="learned",
        activation=activation(c["activation_function"]),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=c.get("tie_word_embeddings", True),
        init_std=c.get("initializer_range", 0.02),
    )


def _describe(config: ModelConfig) -> dict:
    names = {"gelu_tanh": "gelu_new"}
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": names.get(config.activation, config.activation),
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
    }


GPT2 = Family("GPT2LMHeadModel", _fields, _describe, _table)
