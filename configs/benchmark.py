"""Sizes to benchmark: python -m launch.benchmark --config=configs/benchmark.py:SIZE. Batches are random; no data is
read.

small     6 layers x 384, vocabulary 8192, sequence 256, batch 16
llama     the same with LLaMA's parts
gpt2      GPT-2 124M, sequence 256, batch 4
one_b     a 1B-class decoder, sequence 2048, for one accelerator

SIZE-lora trains low-rank adapters (rank 8, on all linear layers of the stack) over a frozen model; SIZE-qlora does the
same over a model in 4 bits.
"""

from ml_collections import ConfigDict

from configs import pretrain_decoder
from configs.parts.methods import LORA
from configs.sizes import SIZES

_GPT2 = dict(SIZES["gpt2"], num_kv_heads=0, head_dim=0)
_OWN = dict(num_kv_heads=0, tied=False)
_SIZES = {
    "small": dict(_GPT2, vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, mlp_dim=1536, max_length=1024),
    "llama": dict(_OWN, vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, mlp_dim=1024, max_length=1024),
    "gpt2": dict(_GPT2, vocab_size=50304, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072, max_length=1024),
    "one_b": dict(
        vocab_size=32768, num_layers=16, embed_dim=2048, num_heads=16, num_kv_heads=8, mlp_dim=5632, max_length=2048
    ),
}
_SHAPES = {"small": (16, 256), "llama": (16, 256), "gpt2": (4, 256), "one_b": (8, 2048)}
_METHODS = {"": {}, "lora": LORA, "qlora": dict(LORA, base="nf4")}


def get_config(size: str = "small") -> ConfigDict:
    size, _, method = size.partition("-")
    if size not in _SIZES:
        raise ValueError(f"unknown size {size!r}; choose from {', '.join(_SIZES)}")
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r} after the size; choose from lora, qlora")
    config = pretrain_decoder.get_config()
    config.model.update(_SIZES[size])
    config.batch_size, config.data.seq_len = _SHAPES[size]
    config.adapt.update(_METHODS[method])
    return config
