"""Published sizes: the architecture fields of ModelConfig by name. Every field is there: each can be overridden.

Context is what a model was first trained at; Llama 3 reached 128K later, by rescaling its rotary angles. GPT-3 made
every other layer's attention sparse, which changes neither its parameters nor the products with them; it is dense here.
"""


def _gpt(num_layers: int, embed_dim: int, num_heads: int, max_length: int = 1024) -> dict:
    """GPT-2 (Radford et al. 2019, table 2; the four released checkpoints) and GPT-3 (arXiv:2005.14165, table 2.1)."""
    return dict(
        vocab_size=50257,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=4 * embed_dim,
        max_length=max_length,
        norm="layernorm",
        norm_epsilon=1e-5,
        position="learned",
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
        init_std=0.02,
    )


def _llama(
    num_layers: int,
    embed_dim: int,
    num_heads: int,
    mlp_dim: int,
    *,
    num_kv_heads: int = 0,
    vocab_size: int = 32_000,
    max_length: int = 2048,
    norm_epsilon: float = 1e-6,
    rope_theta: float = 10_000.0,
    tied: bool = False,
) -> dict:
    """LLaMA (arXiv:2302.13971, table 2, and the released params.json)."""
    return dict(
        vocab_size=vocab_size,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=mlp_dim,
        max_length=max_length,
        norm="rmsnorm",
        norm_epsilon=norm_epsilon,
        position="rotary",
        rope=dict(theta=rope_theta),
        activation="silu",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied=tied,
        init_std=0.02,
    )


def _llama3(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int) -> dict:
    """Llama 3 (arXiv:2407.21783, table 3)."""
    return _llama(
        num_layers,
        embed_dim,
        num_heads,
        mlp_dim,
        num_kv_heads=8,
        vocab_size=128_256,
        max_length=8192,
        norm_epsilon=1e-5,
        rope_theta=500_000.0,
    )


SIZES = {
    # For two CPU cores. A vocabulary of 0 is the tokenizer's.
    "tiny": _llama(4, 256, 4, 704, num_kv_heads=2, vocab_size=0, max_length=512, norm_epsilon=1e-5, tied=True),
    "gpt2": _gpt(12, 768, 12),
    "gpt2_medium": _gpt(24, 1024, 16),
    "gpt2_large": _gpt(36, 1280, 20),
    "gpt2_xl": _gpt(48, 1600, 25),
    "gpt3_175b": _gpt(96, 12288, 96, max_length=2048),
    "llama_7b": _llama(32, 4096, 32, 11008),
    "llama_13b": _llama(40, 5120, 40, 13824),
    "llama_33b": _llama(60, 6656, 52, 17920),
    "llama_65b": _llama(80, 8192, 64, 22016, norm_epsilon=1e-5),
    "llama3_8b": _llama3(32, 4096, 32, 14336),
    "llama3_70b": _llama3(80, 8192, 64, 28672),
    "llama3_405b": _llama3(126, 16384, 128, 53248),
}
