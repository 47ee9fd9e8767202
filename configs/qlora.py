"""QLoRA: fine-tunes low-rank adapters over a frozen model in 4 bits (arXiv:2305.14314).

The base is stored as NF4 with double quantization, and computes in bfloat16.

python -m launch.train --config=configs/qlora.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft
from configs.parts.methods import tuned


def get_config() -> ConfigDict:
    return tuned(sft.get_config(), "qlora")
