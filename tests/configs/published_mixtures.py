"""config.json of released mixtures of experts; see published.py."""

from tests.configs.released import released

_DIMS = "hidden_size num_hidden_layers num_attention_heads intermediate_size num_key_value_heads"
_SHARED = dict(hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=False)
_MIXTRAL = _SHARED | dict(vocab_size=32000, rms_norm_eps=1e-5, sliding_window=None)
_MIXTRAL |= dict(num_local_experts=8, num_experts_per_tok=2)
_QWEN = _SHARED | dict(vocab_size=151936, use_sliding_window=False, decoder_sparse_step=1)
_QWEN2 = _QWEN | dict(norm_topk_prob=False)
_QWEN3 = _QWEN | dict(norm_topk_prob=True, head_dim=128, max_position_embeddings=40960, attention_bias=False)
_QWEN3 |= dict(num_experts=128, num_experts_per_tok=8, mlp_only_layers=[])

CONFIGS = {
    **released(
        "mixtral",
        _DIMS,
        _MIXTRAL,
        {
            "mixtral_8x7b": (4096, 32, 32, 14336, 8, dict(max_position_embeddings=32768)),
            "mixtral_8x22b": (6144, 56, 48, 16384, 8, dict(max_position_embeddings=65536)),
        },
    ),
    **released(
        "qwen2_moe",
        f"{_DIMS} moe_intermediate_size shared_expert_intermediate_size num_experts num_experts_per_tok",
        _QWEN2,
        {
            "qwen1.5_moe_a2.7b": (
                *(2048, 24, 16, 5632, 16, 1408, 5632, 60, 4),
                dict(max_position_embeddings=8192, max_window_layers=21, sliding_window=32768),
            ),
            "qwen2_57b_a14b": (
                *(3584, 28, 28, 18944, 4, 2560, 20480, 64, 8),
                dict(max_position_embeddings=131072, max_window_layers=28, sliding_window=131072),
            ),
        },
    ),
    **released(
        "qwen3_moe",
        f"{_DIMS} moe_intermediate_size",
        _QWEN3,
        {"qwen3_30b_a3b": (2048, 48, 32, 6144, 4, 768), "qwen3_235b_a22b": (4096, 94, 64, 12288, 4, 1536)},
    ),
}
