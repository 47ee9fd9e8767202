"""Pre-trains a decoder. The argument is a size of configs/sizes/: --config=configs/pretrain_decoder.py:llama3_8b"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.sizes import DECODERS


def get_config(size: str = "tiny") -> ConfigDict:
    return base(size, DECODERS)
