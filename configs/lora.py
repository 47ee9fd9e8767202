"""LoRA: fine-tunes low-rank adapters over a frozen model (arXiv:2106.09685).

python -m launch.train --config=configs/lora.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft
from configs.parts.methods import tuned


def get_config() -> ConfigDict:
    return tuned(sft.get_config(), "lora")
