"""Encoders with the head for masked tokens: BERT, RoBERTa, ALBERT (version 2)."""


def bert(num_layers: int, embed_dim: int, num_heads: int, vocab_size: int = 30_522, **fields) -> dict:
    """BERT (arXiv:1810.04805, section 3), with the vocabulary of the uncased release."""
    return dict(
        architecture="encoder",
        vocab_size=vocab_size,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=4 * embed_dim,
        max_length=512,
        norm="layernorm",
        norm_epsilon=1e-12,
        norm_position="post",
        final_norm=False,
        embedding_norm=True,
        position="learned",
        token_types=2,
        activation="gelu",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
        output_bias=True,
        head="masked",
        num_labels=2,
        init_std=0.02,
    ) | dict(fields)


def _roberta(num_layers: int, embed_dim: int, num_heads: int) -> dict:
    """RoBERTa (arXiv:1907.11692): BERT with another vocabulary; positions start at 2, after two rows for padding."""
    fields = dict(norm_epsilon=1e-5, position_offset=2, token_types=1)
    return bert(num_layers, embed_dim, num_heads, vocab_size=50_265, **fields)


def _albert(num_layers: int, embed_dim: int, num_heads: int) -> dict:
    """ALBERT (arXiv:1909.11942, table 1): all layers share their parameters; the embedding table has 128 features."""
    fields = dict(table_dim=128, share_groups=1, share_inner=1, activation="gelu_tanh")
    return bert(num_layers, embed_dim, num_heads, vocab_size=30_000, **fields)


SIZES = {
    "bert_base_uncased": bert(12, 768, 12),
    "bert_large_uncased": bert(24, 1024, 16),
    "bert_base_cased": bert(12, 768, 12, vocab_size=28_996),
    "bert_large_cased": bert(24, 1024, 16, vocab_size=28_996),
    "roberta_base": _roberta(12, 768, 12),
    "roberta_large": _roberta(24, 1024, 16),
    "albert_base": _albert(12, 768, 12),
    "albert_large": _albert(24, 1024, 16),
    "albert_xlarge": _albert(24, 2048, 16),
    "albert_xxlarge": _albert(12, 4096, 64),
}
