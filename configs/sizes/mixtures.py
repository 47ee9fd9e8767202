"""Decoders with mixtures of experts as feed-forward layers: Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2 and V3."""

from configs.sizes.llama import llama, rope

_LOG_40 = 3.6888794541139363  # natural logarithm of YaRN's factor, for mscale


def experts(count: int, per_token: int, mlp_dim: int, **fields) -> dict:
    """Returns fields of model.parts.Experts."""
    return dict(
        count=count,
        per_token=per_token,
        mlp_dim=mlp_dim,
        shared_dim=0,
        shared_gate=False,
        score="softmax",
        normalize=False,
        scale=1.0,
        groups=1,
        groups_per_token=1,
        group_score="max",
        correction=False,
        capacity=0,
        capacity_factor=0.0,
    ) | dict(fields)


def _mixtral(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, **fields) -> dict:
    """Mixtral (arXiv:2401.04088, table 1)."""
    shared: dict = dict(num_kv_heads=8, vocab_size=32_000, norm_epsilon=1e-5, rope=rope(1_000_000.0))
    shared |= dict(mlp_pattern=("sparse",), experts=experts(8, 2, mlp_dim, normalize=True))
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **shared | fields)


def _qwen2(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, **fields) -> dict:
    """Qwen1.5-MoE and Qwen2-57B-A14B (arXiv:2407.10671, table 1); no layer is dense, so no layer uses mlp_dim."""
    shared: dict = dict(vocab_size=151_936, rope=rope(1_000_000.0), qkv_bias=True, mlp_pattern=("sparse",))
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **shared | fields)


def _qwen3(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, expert_dim: int) -> dict:
    """Qwen3-MoE (arXiv:2505.09388, table 2)."""
    shared: dict = dict(num_kv_heads=4, head_dim=128, vocab_size=151_936, max_length=40_960, rope=rope(1_000_000.0))
    shared |= dict(qk_norm=True, mlp_pattern=("sparse",), experts=experts(128, 8, expert_dim, normalize=True))
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **shared)


def _deepseek(
    num_layers: int,
    embed_dim: int,
    num_heads: int,
    mlp_dim: int,
    *,
    dense: int,
    query_rank: int,
    mscale: float,
    **fields,
) -> dict:
    """DeepSeek-V2 (arXiv:2405.04434, section 3.1.2 and appendix B) and V3 (arXiv:2412.19437, section 4.2).

    Args:
      dense: number of dense layers, which come first.
      mscale: YaRN's factor: attention scores are multiplied by (0.1 mscale ln 40 + 1)^2.
    """
    content, turned = 128, 64
    shared: dict = dict(
        max_length=163_840,
        latent=dict(kv_rank=512, content_dim=content, rope_dim=turned, value_dim=128, query_rank=query_rank),
        head_dim=content + turned,
        attention_scale=(0.1 * mscale * _LOG_40 + 1) ** 2 * (content + turned) ** -0.5,
        rope=rope(10_000.0, "yarn", 40.0, 4096)
        | dict(beta_fast=32.0, beta_slow=1.0, attention_factor=1.0, interleaved=True),
        mlp_pattern=("dense",) * dense + ("sparse",) * (num_layers - dense),
    )
    return llama(num_layers, embed_dim, num_heads, mlp_dim, **shared | fields)


SIZES = {
    "mixtral_8x7b": _mixtral(32, 4096, 32, 14336, max_length=32_768),
    "mixtral_8x22b": _mixtral(56, 6144, 48, 16384, max_length=65_536),
    "qwen1.5_moe_a2.7b": _qwen2(
        *(24, 2048, 16, 5632),
        max_length=8192,
        experts=experts(60, 4, 1408, shared_dim=5632, shared_gate=True),
    ),
    "qwen2_57b_a14b": _qwen2(
        *(28, 3584, 28, 18944),
        num_kv_heads=4,
        max_length=131_072,
        experts=experts(64, 8, 2560, shared_dim=20480, shared_gate=True),
    ),
    "qwen3_30b_a3b": _qwen3(48, 2048, 32, 6144, 768),
    "qwen3_235b_a22b": _qwen3(94, 4096, 64, 12288, 1536),
    "deepseek_v2_lite": _deepseek(
        *(27, 2048, 16, 10944),
        dense=1,
        query_rank=0,
        mscale=0.707,
        vocab_size=102_400,
        experts=experts(64, 6, 1408, shared_dim=2 * 1408),
    ),
    "deepseek_v2": _deepseek(
        *(60, 5120, 128, 12288),
        dense=1,
        query_rank=1536,
        mscale=0.707,
        vocab_size=102_400,
        experts=experts(160, 6, 1536, shared_dim=2 * 1536, scale=16.0, groups=8, groups_per_token=3),
    ),
    "deepseek_v3": _deepseek(
        *(61, 7168, 128, 18432),
        dense=3,
        query_rank=1536,
        mscale=1.0,
        vocab_size=129_280,
        experts=experts(256, 8, 2048, shared_dim=2048, score="sigmoid", normalize=True, scale=2.5, correction=True)
        | dict(groups=8, groups_per_token=4, group_score="top2"),
    ),
}
