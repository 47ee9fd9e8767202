"""Pre-train an encoder with masked language modelling (BERT, arXiv:1810.04805, with RoBERTa's dynamic masks).

    python -m launch.train --config=configs/pretrain_encoder.py:bert_base_uncased --workdir=runs/encoder

The argument is a size of configs/sizes/. --config.data.corruption.whole_words=True masks whole words.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.sizes import ENCODERS


def get_config(size: str = "tiny_encoder") -> ConfigDict:
    config = base(size, ENCODERS)
    config.data.tokenizer.mask = True
    config.data.corruption = ConfigDict(dict(kind="masked", rate=0.15, mask=0.8, random=0.1, whole_words=False))
    return config
