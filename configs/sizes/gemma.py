"""Gemma 1, 2 and 3 (text). Norms scale by 1 + weight, and embeddings are scaled by the square root of their width."""

from configs.sizes.llama import llama, rope


def _gemma(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, num_kv_heads: int, **fields) -> dict:
    """Gemma (arXiv:2403.08295, table 1)."""
    shared = dict(
        num_kv_heads=num_kv_heads,
        head_dim=256,
        vocab_size=256_000,
        max_length=8192,
        norm_offset=1.0,
        embedding_scale=embed_dim**0.5,
        activation="gelu_tanh",
        tied=True,
    )
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **shared | fields)


def _gemma2(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, num_kv_heads: int, **fields) -> dict:
    """Gemma 2 (arXiv:2408.00118, table 1): norms around each sublayer, capped scores, every other layer local."""
    shared = dict(
        norm_position="both",
        attention_pattern=("local", "global"),
        window=4096,
        attention_scale=256**-0.5,
        attention_softcap=50.0,
        logit_softcap=30.0,
    )
    return _gemma(num_layers, embed_dim, num_heads, mlp_dim, num_kv_heads, **shared | fields)


def _gemma3(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, num_kv_heads: int, **fields) -> dict:
    """Gemma 3 (arXiv:2503.19786, section 2): query and key norms instead of caps, five local layers per global one.

    The vocabulary of 4b and larger has room for image tokens.
    """
    shared = dict(
        vocab_size=262_208,
        max_length=131_072,
        rope=rope(1_000_000.0, "linear", 8.0) | dict(local_theta=10_000.0),
        attention_pattern=("local",) * 5 + ("global",),
        window=1024,
        attention_softcap=0.0,
        logit_softcap=0.0,
        qk_norm=True,
    )
    return _gemma2(num_layers, embed_dim, num_heads, mlp_dim, num_kv_heads, **shared | fields)


_SHORT = dict(vocab_size=262_144, max_length=32_768, window=512, rope=rope(1_000_000.0) | dict(local_theta=10_000.0))

SIZES = {
    "gemma_2b": _gemma(18, 2048, 8, 16384, 1),
    "gemma_7b": _gemma(28, 3072, 16, 24576, 16),
    "gemma2_2b": _gemma2(26, 2304, 8, 9216, 4),
    "gemma2_9b": _gemma2(42, 3584, 16, 14336, 8),
    "gemma2_27b": _gemma2(46, 4608, 32, 36864, 16, head_dim=128, attention_scale=144**-0.5),
    "gemma3_270m": _gemma3(18, 640, 4, 2048, 1, **_SHORT),
    "gemma3_1b": _gemma3(26, 1152, 4, 6912, 1, **_SHORT),
    "gemma3_4b": _gemma3(34, 2560, 8, 10240, 4),
    "gemma3_12b": _gemma3(48, 3840, 16, 15360, 8),
    "gemma3_27b": _gemma3(62, 5376, 32, 21504, 16, head_dim=128, attention_scale=168**-0.5),
}
