"""config.json of released encoder-decoders, in the form of published.py."""

from tests.configs.released import released

_DIMS = "d_model num_layers num_heads d_ff d_kv"
_T5 = dict(vocab_size=32128, relative_attention_num_buckets=32, relative_attention_max_distance=128, n_positions=512)
_T5 |= dict(layer_norm_epsilon=1e-6, initializer_factor=1.0, is_encoder_decoder=True)
_SWITCH = _T5 | dict(dense_act_fn="relu", feed_forward_proj="relu", expert_capacity=64, router_bias=False)
_BASE = dict(num_sparse_encoder_layers=6, num_decoder_layers=12, num_sparse_decoder_layers=6)
_LARGE = dict(num_sparse_encoder_layers=12, num_decoder_layers=24, num_sparse_decoder_layers=12)

CONFIGS = {
    **released(
        "t5",
        _DIMS,
        _T5 | dict(feed_forward_proj="relu"),
        {
            "t5_small": (512, 6, 8, 2048, 64),
            "t5_base": (768, 12, 12, 3072, 64),
            "t5_large": (1024, 24, 16, 4096, 64),
            "t5_3b": (1024, 24, 32, 16384, 128),
            "t5_11b": (1024, 24, 128, 65536, 128),
        },
    ),
    **released(
        "t5",
        _DIMS,
        _T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        {
            "t5_v1_1_small": (512, 8, 6, 1024, 64),
            "t5_v1_1_base": (768, 12, 12, 2048, 64),
            "t5_v1_1_large": (1024, 24, 16, 2816, 64),
            "t5_v1_1_xl": (2048, 24, 32, 5120, 64),
            "t5_v1_1_xxl": (4096, 24, 64, 10240, 64),
        },
    ),
    **released(
        "switch_transformers",
        f"{_DIMS} num_experts",
        _SWITCH,
        {
            **{f"switch_base_{n}": (768, 12, 12, 3072, 64, n, _BASE) for n in (8, 16, 32, 64, 128, 256)},
            "switch_large_128": (1024, 24, 16, 4096, 64, 128, _LARGE),
        },
    ),
}
