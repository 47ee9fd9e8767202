"""Pre-train an encoder-decoder with span corruption (T5, arXiv:1910.10683).

    python -m launch.train --config=configs/pretrain_encdec.py:t5_v1_1_base --workdir=runs/encdec

The argument is a size of configs/sizes/.
"""

from ml_collections import ConfigDict, config_dict

from configs.parts.base import base
from configs.sizes import ENCODER_DECODERS


def get_config(size: str = "tiny_encdec") -> ConfigDict:
    config = base(size, ENCODER_DECODERS)
    config.data.tokenizer.sentinels = 100
    config.data.corruption = ConfigDict(dict(kind="spans", rate=0.15, mean_length=3.0))
    config.data.corruption.start_id = config_dict.placeholder(int)  # the decoder's first input; unset: the tokenizer's
    return config
