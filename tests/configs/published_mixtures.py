"""config.json of released mixtures of experts, in the form of published.py."""

from tests.configs.released import released

_DIMS = "hidden_size num_hidden_layers num_attention_heads intermediate_size num_key_value_heads"
_SHARED = dict(hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=False)
_MIXTRAL = _SHARED | dict(vocab_size=32000, rms_norm_eps=1e-5, sliding_window=None)
_MIXTRAL |= dict(num_local_experts=8, num_experts_per_tok=2)
_QWEN = _SHARED | dict(vocab_size=151936, use_sliding_window=False, decoder_sparse_step=1)
_QWEN2 = _QWEN | dict(norm_topk_prob=False)
_QWEN3 = _QWEN | dict(norm_topk_prob=True, head_dim=128, max_position_embeddings=40960, attention_bias=False)
_QWEN3 |= dict(num_experts=128, num_experts_per_tok=8, mlp_only_layers=[])
_DEEPSEEK = _SHARED | dict(rope_theta=10000.0, max_position_embeddings=163840, attention_bias=False, moe_layer_freq=1)
_DEEPSEEK |= dict(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
_DEEPSEEK_NAMES = f"{_DIMS} moe_intermediate_size n_routed_experts n_shared_experts num_experts_per_tok q_lora_rank"


def _yarn(mscale: float) -> dict:
    scaling = dict(type="yarn", factor=40, beta_fast=32, beta_slow=1, original_max_position_embeddings=4096)
    return dict(rope_scaling=scaling | dict(mscale=mscale, mscale_all_dim=mscale))


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
    **released(
        "deepseek_v2",
        _DEEPSEEK_NAMES,
        _DEEPSEEK | _yarn(0.707) | dict(vocab_size=102400, scoring_func="softmax", norm_topk_prob=False),
        {
            "deepseek_v2_lite": (
                *(2048, 27, 16, 10944, 16, 1408, 64, 2, 6, None),
                dict(first_k_dense_replace=1, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0),
            ),
            "deepseek_v2": (
                *(5120, 60, 128, 12288, 128, 1536, 160, 2, 6, 1536),
                dict(first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=8, topk_group=3)
                | dict(routed_scaling_factor=16.0),
            ),
        },
    ),
    **released(
        "deepseek_v3",
        _DEEPSEEK_NAMES,
        _DEEPSEEK | _yarn(1.0) | dict(vocab_size=129280, scoring_func="sigmoid", norm_topk_prob=True),
        {
            "deepseek_v3": (
                *(7168, 61, 128, 18432, 128, 2048, 256, 1, 8, 1536),
                dict(first_k_dense_replace=3, topk_method="noaux_tc", n_group=8, topk_group=4)
                | dict(routed_scaling_factor=2.5),
            ),
        },
    ),
}
