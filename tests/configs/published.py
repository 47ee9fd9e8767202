"""config.json of the released checkpoints by the name of our size, only the fields that describe the architecture.

The fields are in the format of the release (transformers 4: `rope_theta`, `rope_scaling`). Where a release relies on
the defaults of transformers' configuration class, the values are written out.
"""

from tests.configs import published_encoder_decoders as encoder_decoders
from tests.configs import published_encoders as encoders
from tests.configs import published_mixtures as mixtures
from tests.configs.released import released


def _llama3(factor: float) -> dict:
    scaling = dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
    return dict(max_position_embeddings=131072, rope_scaling=scaling | dict(original_max_position_embeddings=8192))


_DIMS = "hidden_size num_hidden_layers num_attention_heads intermediate_size"
_GROUPED = f"{_DIMS} num_key_value_heads"
_TIED = dict(tie_word_embeddings=True)
_LLAMA = dict(hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False, attention_bias=False)
_LLAMA1 = _LLAMA | dict(vocab_size=32000, max_position_embeddings=2048, rms_norm_eps=1e-6)
_LLAMA2 = _LLAMA | dict(vocab_size=32000, max_position_embeddings=4096)
_LLAMA3 = _LLAMA | dict(vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0)
_MISTRAL = dict(hidden_act="silu", max_position_embeddings=32768, rms_norm_eps=1e-5, tie_word_embeddings=False)
_PHI4 = dict(hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False, attention_bias=False, rope_scaling=None)
_PHI4 |= dict(embd_pdrop=0.0, resid_pdrop=0.0, max_position_embeddings=16384, original_max_position_embeddings=16384)
_PHI4 |= dict(vocab_size=100352, rope_theta=250000.0, sliding_window=None)
_QWEN = dict(hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000000.0, use_sliding_window=False)
_QWEN2 = _QWEN | dict(vocab_size=152064, max_position_embeddings=131072, sliding_window=131072, max_window_layers=28)
_QWEN3 = _QWEN | dict(vocab_size=151936, max_position_embeddings=40960, sliding_window=None, attention_bias=False)
_GEMMA = dict(vocab_size=256000, max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=10000.0, head_dim=256)
_GEMMA2 = _GEMMA | dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, sliding_window=4096)
_GEMMA3 = _GEMMA2 | dict(rope_theta=1000000.0, rope_local_base_freq=10000.0, sliding_window_pattern=6)
_GEMMA3_SMALL = dict(vocab_size=262144, max_position_embeddings=32768, sliding_window=512)
_GEMMA3_LARGE = dict(vocab_size=262208, max_position_embeddings=131072, sliding_window=1024) | dict(
    rope_scaling=dict(rope_type="linear", factor=8.0)
)
_OPT = dict(vocab_size=50272, max_position_embeddings=2048, activation_function="relu", do_layer_norm_before=True)
_GPT2 = dict(vocab_size=50257, n_positions=1024, layer_norm_epsilon=1e-5, activation_function="gelu_new")
_BLOOM = dict(vocab_size=250880, layer_norm_epsilon=1e-5, apply_residual_connection_post_layernorm=False)
CONFIGS = {
    **released(
        "gpt2",
        "n_embd n_layer n_head",
        _GPT2,
        {
            "gpt2": (768, 12, 12),
            "gpt2_medium": (1024, 24, 16),
            "gpt2_large": (1280, 36, 20),
            "gpt2_xl": (1600, 48, 25),
        },
    ),
    **released(
        "llama",
        _DIMS,
        _LLAMA1,
        {
            "llama_7b": (4096, 32, 32, 11008),
            "llama_13b": (5120, 40, 40, 13824),
            "llama_33b": (6656, 60, 52, 17920),
            "llama_65b": (8192, 80, 64, 22016, dict(rms_norm_eps=1e-5)),
        },
    ),
    **released(
        "llama",
        _GROUPED,
        _LLAMA2,
        {
            "llama2_7b": (4096, 32, 32, 11008, 32),
            "llama2_13b": (5120, 40, 40, 13824, 40),
            "llama2_70b": (8192, 80, 64, 28672, 8),
        },
    ),
    **released(
        "llama",
        _GROUPED,
        _LLAMA3,
        {
            "llama3_8b": (4096, 32, 32, 14336, 8),
            "llama3_70b": (8192, 80, 64, 28672, 8),
            "llama3.1_8b": (4096, 32, 32, 14336, 8, _llama3(8.0)),
            "llama3.1_70b": (8192, 80, 64, 28672, 8, _llama3(8.0)),
            "llama3.1_405b": (16384, 126, 128, 53248, 8, _llama3(8.0)),
            "llama3.2_1b": (2048, 16, 32, 8192, 8, _llama3(32.0) | _TIED | dict(head_dim=64)),
            "llama3.2_3b": (3072, 28, 24, 8192, 8, _llama3(32.0) | _TIED | dict(head_dim=128)),
        },
    ),
    **released(
        "mistral",
        _GROUPED,
        _MISTRAL,
        {
            "mistral_7b_v0.1": (
                *(4096, 32, 32, 14336, 8),
                dict(vocab_size=32000, rope_theta=10000.0, sliding_window=4096),
            ),
            "mistral_7b_v0.3": (
                *(4096, 32, 32, 14336, 8),
                dict(vocab_size=32768, rope_theta=1000000.0, sliding_window=None),
            ),
        },
    ),
    **released("phi3", _GROUPED, _PHI4, {"phi4": (5120, 40, 40, 17920, 10)}),
    **released(
        "qwen2",
        _GROUPED,
        _QWEN2,
        {
            "qwen2_0.5b": (896, 24, 14, 4864, 2, _TIED | dict(vocab_size=151936)),
            "qwen2_1.5b": (1536, 28, 12, 8960, 2, _TIED | dict(vocab_size=151936)),
            "qwen2_7b": (3584, 28, 28, 18944, 4),
            "qwen2_72b": (8192, 80, 64, 29568, 8, dict(rms_norm_eps=1e-5)),
        },
    ),
    **released(
        "qwen3",
        f"{_GROUPED} head_dim",
        _QWEN3,
        {
            "qwen3_0.6b": (1024, 28, 16, 3072, 8, 128, _TIED),
            "qwen3_1.7b": (2048, 28, 16, 6144, 8, 128, _TIED),
            "qwen3_4b": (2560, 36, 32, 9728, 8, 128, _TIED),
            "qwen3_8b": (4096, 36, 32, 12288, 8, 128),
            "qwen3_14b": (5120, 40, 40, 17408, 8, 128),
            "qwen3_32b": (5120, 64, 64, 25600, 8, 128),
        },
    ),
    **released(
        "gemma",
        _GROUPED,
        _GEMMA | dict(hidden_act="gelu"),  # in these releases, gelu means the tanh approximation
        {"gemma_2b": (2048, 18, 8, 16384, 1), "gemma_7b": (3072, 28, 16, 24576, 16)},
    ),
    **released(
        "gemma2",
        _GROUPED,
        _GEMMA2 | dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        {
            "gemma2_2b": (2304, 26, 8, 9216, 4),
            "gemma2_9b": (3584, 42, 16, 14336, 8),
            "gemma2_27b": (4608, 46, 32, 36864, 16, dict(head_dim=128, query_pre_attn_scalar=144)),
        },
    ),
    **released(
        "gemma3_text",
        _GROUPED,
        _GEMMA3,
        {
            "gemma3_270m": (640, 18, 4, 2048, 1, _GEMMA3_SMALL),
            "gemma3_1b": (1152, 26, 4, 6912, 1, _GEMMA3_SMALL),
            "gemma3_4b": (2560, 34, 8, 10240, 4, _GEMMA3_LARGE),
            "gemma3_12b": (3840, 48, 16, 15360, 8, _GEMMA3_LARGE),
            "gemma3_27b": (
                *(5376, 62, 32, 21504, 16),
                _GEMMA3_LARGE | dict(head_dim=128, query_pre_attn_scalar=168),
            ),
        },
    ),
    **released(
        "opt",
        "hidden_size num_hidden_layers num_attention_heads ffn_dim word_embed_proj_dim",
        _OPT,
        {
            "opt_125m": (768, 12, 12, 3072, 768),
            "opt_350m": (1024, 24, 16, 4096, 512, dict(do_layer_norm_before=False)),
            "opt_1.3b": (2048, 24, 32, 8192, 2048),
            "opt_2.7b": (2560, 32, 32, 10240, 2560),
            "opt_6.7b": (4096, 32, 32, 16384, 4096),
            "opt_13b": (5120, 40, 40, 20480, 5120),
            "opt_30b": (7168, 48, 56, 28672, 7168),
            "opt_66b": (9216, 64, 72, 36864, 9216),
            "opt_175b": (12288, 96, 96, 49152, 12288),
        },
    ),
    **released(
        "bloom",
        "hidden_size n_layer n_head",
        _BLOOM,
        {
            "bloom_560m": (1024, 24, 16),
            "bloom_1.1b": (1536, 24, 16),
            "bloom_1.7b": (2048, 24, 16),
            "bloom_3b": (2560, 30, 32),
            "bloom_7.1b": (4096, 30, 32),
            "bloom_176b": (14336, 70, 112),
        },
    ),
    **mixtures.CONFIGS,
    **encoders.CONFIGS,
    **encoder_decoders.CONFIGS,
}
