"""LLaMA 1 to 3.2, and models with the same architecture: Mistral, Phi-3, Qwen2, Qwen3."""


def rope(theta: float, scaling: str = "none", factor: float = 1.0, original_length: int = 0) -> dict:
    """Returns the fields of model.parts.Rope. The other two fields of llama3 scaling default to the released values."""
    return dict(theta=theta, scaling=scaling, factor=factor, original_length=original_length)


def llama(
    num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, *, num_kv_heads: int = 0, head_dim: int = 0, **fields
) -> dict:
    """Returns the fields of a LLaMA-like decoder, overridden by `fields`.

    Args:
      num_kv_heads: 0 means num_heads.
      head_dim: 0 means embed_dim / num_heads.
    """
    return dict(
        architecture="decoder",
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=head_dim or embed_dim // num_heads,
        mlp_dim=mlp_dim,
        norm="rmsnorm",
        norm_epsilon=1e-6,
        position="rotary",
        rope=rope(10_000.0),
        activation="silu",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied=False,
        init_std=0.02,
    ) | dict(fields)


def _llama1(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, norm_epsilon: float = 1e-6) -> dict:
    """LLaMA (arXiv:2302.13971, table 2, and the released params.json)."""
    fields: dict = dict(vocab_size=32_000, max_length=2048, norm_epsilon=norm_epsilon)
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **fields)


def _llama2(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, num_kv_heads: int = 0) -> dict:
    """Llama 2 (arXiv:2307.09288, table 1)."""
    fields: dict = dict(num_kv_heads=num_kv_heads, vocab_size=32_000, max_length=4096, norm_epsilon=1e-5)
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **fields)


def _llama3(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, factor: float = 0.0, **fields) -> dict:
    """Llama 3 (arXiv:2407.21783, table 3). With a `factor` Llama 3.1 and 3.2, which rescale rotary angles for 128K."""
    shared: dict = dict(num_kv_heads=8, vocab_size=128_256, norm_epsilon=1e-5)
    shared |= dict(max_length=8192, rope=rope(500_000.0)) | fields
    if factor:
        shared |= dict(max_length=131_072, rope=rope(500_000.0, "llama3", factor, 8192))
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **shared)


def _mistral(**fields) -> dict:
    """Mistral 7B (arXiv:2310.06825, table 1)."""
    fields = dict(num_kv_heads=8, max_length=32_768, norm_epsilon=1e-5) | fields
    return llama(32, 4096, 32, 14336, **fields)


def _qwen2(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, num_kv_heads: int, **fields) -> dict:
    """Qwen2 (arXiv:2407.10671, table 1)."""
    shared: dict = dict(vocab_size=152_064, max_length=131_072, rope=rope(1_000_000.0), qkv_bias=True)
    return llama(num_layers, embed_dim, num_heads, mlp_dim, num_kv_heads=num_kv_heads, **shared | fields)


def _qwen3(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, **fields) -> dict:
    """Qwen3 (arXiv:2505.09388, table 1)."""
    shared: dict = dict(vocab_size=151_936, max_length=40_960, rope=rope(1_000_000.0), qk_norm=True)
    return llama(num_layers, embed_dim, num_heads, mlp_dim, num_kv_heads=8, head_dim=128, **shared | fields)


SIZES = {
    "llama_7b": _llama1(32, 4096, 32, 11008),
    "llama_13b": _llama1(40, 5120, 40, 13824),
    "llama_33b": _llama1(60, 6656, 52, 17920),
    "llama_65b": _llama1(80, 8192, 64, 22016, norm_epsilon=1e-5),
    "llama2_7b": _llama2(32, 4096, 32, 11008),
    "llama2_13b": _llama2(40, 5120, 40, 13824),
    "llama2_70b": _llama2(80, 8192, 64, 28672, num_kv_heads=8),
    "llama3_8b": _llama3(32, 4096, 32, 14336),
    "llama3_70b": _llama3(80, 8192, 64, 28672),
    "llama3.1_8b": _llama3(32, 4096, 32, 14336, factor=8.0),
    "llama3.1_70b": _llama3(80, 8192, 64, 28672, factor=8.0),
    "llama3.1_405b": _llama3(126, 16384, 128, 53248, factor=8.0),
    "llama3.2_1b": _llama3(16, 2048, 32, 8192, factor=32.0, tied=True),
    "llama3.2_3b": _llama3(28, 3072, 24, 8192, factor=32.0, tied=True),
    "mistral_7b_v0.1": _mistral(vocab_size=32_000, window=4096, attention_pattern=("local",)),
    "mistral_7b_v0.3": _mistral(vocab_size=32_768, rope=rope(1_000_000.0)),
    "phi4": llama(  # arXiv:2412.08905
        *(40, 5120, 40, 17920),
        num_kv_heads=10,
        vocab_size=100_352,
        max_length=16_384,
        norm_epsilon=1e-5,
        rope=rope(250_000.0),
    ),
    "qwen2_0.5b": _qwen2(24, 896, 14, 4864, 2, vocab_size=151_936, tied=True),
    "qwen2_1.5b": _qwen2(28, 1536, 12, 8960, 2, vocab_size=151_936, tied=True),
    "qwen2_7b": _qwen2(28, 3584, 28, 18944, 4),
    "qwen2_72b": _qwen2(80, 8192, 64, 29568, 8, norm_epsilon=1e-5),
    "qwen3_0.6b": _qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3_1.7b": _qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3_4b": _qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3_8b": _qwen3(36, 4096, 32, 12288),
    "qwen3_14b": _qwen3(40, 5120, 40, 17408),
    "qwen3_32b": _qwen3(64, 5120, 64, 25600),
}
