"""Models for two CPU cores, one of each kind; not published. A vocabulary of 0 is the tokenizer's."""

from configs.sizes.encoders import bert
from configs.sizes.llama import llama
from configs.sizes.mixtures import experts

_LLAMA = dict(num_kv_heads=2, vocab_size=0, max_length=512, norm_epsilon=1e-5, tied=True)
_MIXTURE = _LLAMA | dict(mlp_pattern=("sparse",), experts=experts(8, 2, 352, normalize=True))

DECODERS = {"tiny": llama(4, 256, 4, 704, **_LLAMA), "tiny_moe": llama(4, 256, 4, 352, **_MIXTURE)}
ENCODERS = {"tiny_encoder": bert(4, 256, 4, vocab_size=0)}
# T5 1.1's parts (arXiv:1910.10683 and its released code).
ENCODER_DECODERS = {
    "tiny_encdec": dict(
        architecture="encoder_decoder",
        vocab_size=0,
        num_layers=3,
        encoder_layers=3,
        embed_dim=256,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        mlp_dim=512,
        max_length=512,
        norm="rmsnorm",
        norm_epsilon=1e-6,
        position="relative",
        relative_buckets=32,
        relative_distance=128,
        attention_scale=1.0,
        activation="gelu_tanh",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied=False,
        init_std=0.02,
    )
}
