"""Decoders with LayerNorm, biases and ungated feed-forward layers of four times the width: GPT-2, GPT-3, OPT, BLOOM."""


def _decoder(num_layers: int, embed_dim: int, num_heads: int, **fields) -> dict:
    return dict(
        architecture="decoder",
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=4 * embed_dim,
        norm="layernorm",
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
        init_std=0.02,
    ) | dict(fields)


def _gpt(num_layers: int, embed_dim: int, num_heads: int, max_length: int = 1024) -> dict:
    """GPT-2 (Radford et al. 2019, table 2; the four released checkpoints) and GPT-3 (arXiv:2005.14165, table 2.1).

    In GPT-3 every other layer has sparse attention, which changes neither the parameters nor the products with them;
    here all attention is dense.
    """
    fields = dict(vocab_size=50257, max_length=max_length, position="learned")
    return _decoder(num_layers, embed_dim, num_heads, **fields)


def _opt(num_layers: int, embed_dim: int, num_heads: int, **fields) -> dict:
    """OPT (arXiv:2205.01068, table 1)."""
    return _decoder(
        num_layers,
        embed_dim,
        num_heads,
        vocab_size=50272,
        max_length=2048,
        position="learned",
        position_offset=2,
        activation="relu",
        **dict(table_dim=embed_dim, norm_position="pre", final_norm=True) | fields,
    )


def _bloom(num_layers: int, embed_dim: int, num_heads: int) -> dict:
    """BLOOM (arXiv:2211.05100, table 3)."""
    fields = dict(vocab_size=250880, max_length=2048, position="alibi", embedding_norm=True)
    return _decoder(num_layers, embed_dim, num_heads, **fields)


SIZES = {
    "gpt2": _gpt(12, 768, 12),
    "gpt2_medium": _gpt(24, 1024, 16),
    "gpt2_large": _gpt(36, 1280, 20),
    "gpt2_xl": _gpt(48, 1600, 25),
    "gpt3_175b": _gpt(96, 12288, 96, max_length=2048),
    "opt_125m": _opt(12, 768, 12),
    # The only one with post-norm layers, and with an embedding table narrower than the layers.
    "opt_350m": _opt(24, 1024, 16, table_dim=512, norm_position="post", final_norm=False),
    "opt_1.3b": _opt(24, 2048, 32),
    "opt_2.7b": _opt(32, 2560, 32),
    "opt_6.7b": _opt(32, 4096, 32),
    "opt_13b": _opt(40, 5120, 40),
    "opt_30b": _opt(48, 7168, 56),
    "opt_66b": _opt(64, 9216, 72),
    "opt_175b": _opt(96, 12288, 96),
    "bloom_560m": _bloom(24, 1024, 16),
    "bloom_1.1b": _bloom(24, 1536, 16),
    "bloom_1.7b": _bloom(24, 2048, 16),
    "bloom_3b": _bloom(30, 2560, 32),
    "bloom_7.1b": _bloom(30, 4096, 32),
    "bloom_176b": _bloom(70, 14336, 112),
}
