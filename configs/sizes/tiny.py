"""One unpublished model of each kind for two CPU cores. A vocab_size of 0 means that of the tokenizer."""

from configs.sizes.encoder_decoders import t5_v1_1
from configs.sizes.encoders import bert
from configs.sizes.llama import llama
from configs.sizes.mixtures import experts

_LLAMA: dict = dict(num_kv_heads=2, vocab_size=0, max_length=512, norm_epsilon=1e-5, tied=True)
_MIXTURE = _LLAMA | dict(mlp_pattern=("sparse",), experts=experts(8, 2, 352, normalize=True))

DECODERS = {"tiny": llama(4, 256, 4, 704, **_LLAMA), "tiny_moe": llama(4, 256, 4, 352, **_MIXTURE)}
ENCODERS = {"tiny_encoder": bert(4, 256, 4, vocab_size=0)}
ENCODER_DECODERS = {"tiny_encdec": t5_v1_1(3, 256, 4, 512, vocab_size=0)}
