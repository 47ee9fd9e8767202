"""Encoder-decoders: T5, T5 1.1, Switch Transformers."""

from configs.sizes.mixtures import experts


def _t5(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, head_dim: int = 64, **fields) -> dict:
    """T5 (arXiv:1910.10683, section 3.7); positions are relative, so `max_length` is only its training length."""
    return dict(
        architecture="encoder_decoder",
        vocab_size=32_128,
        num_layers=num_layers,
        encoder_layers=0,  # as many as num_layers
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        max_length=512,
        norm="rmsnorm",
        norm_epsilon=1e-6,
        position="relative",
        relative_buckets=32,
        relative_distance=128,
        attention_scale=1.0,
        activation="relu",
        gated=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied=True,
        logit_scale=embed_dim**-0.5,
        init_std=0.02,
    ) | dict(fields)


def t5_v1_1(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, **fields) -> dict:
    """T5 1.1: the gated feed-forward layer of arXiv:2002.05202, and an untied output layer."""
    shared: dict = dict(activation="gelu_tanh", gated=True, tied=False, logit_scale=1.0)
    return _t5(num_layers, embed_dim, num_heads, mlp_dim, **shared | fields)


def _switch(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, count: int) -> dict:
    """Switch Transformers (arXiv:2101.03961, table 9): every other layer has experts, and each token goes to one."""
    switch = experts(count, 1, mlp_dim, capacity=64)
    return _t5(num_layers, embed_dim, num_heads, mlp_dim, mlp_pattern=("dense", "sparse"), experts=switch)


SIZES = {
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
    "t5_3b": _t5(24, 1024, 32, 16384, head_dim=128),
    "t5_11b": _t5(24, 1024, 128, 65536, head_dim=128),
    "t5_v1_1_small": t5_v1_1(8, 512, 6, 1024),
    "t5_v1_1_base": t5_v1_1(12, 768, 12, 2048),
    "t5_v1_1_large": t5_v1_1(24, 1024, 16, 2816),
    "t5_v1_1_xl": t5_v1_1(24, 2048, 32, 5120),
    "t5_v1_1_xxl": t5_v1_1(24, 4096, 64, 10240),
    "switch_base_8": _switch(12, 768, 12, 3072, 8),
    "switch_base_16": _switch(12, 768, 12, 3072, 16),
    "switch_base_32": _switch(12, 768, 12, 3072, 32),
    "switch_base_64": _switch(12, 768, 12, 3072, 64),
    "switch_base_128": _switch(12, 768, 12, 3072, 128),
    "switch_base_256": _switch(12, 768, 12, 3072, 256),
    "switch_large_128": _switch(24, 1024, 16, 4096, 128),
}
