"""Low-rank adapters over a model in 4 bits: NF4 with double quantization, bfloat16 computation (arXiv:2305.14314).

python -m launch.train --config=configs/qlora.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft
from configs.parts.methods import tuned


def get_config() -> ConfigDict:
    return tuned(sft.get_config(), "qlora")
