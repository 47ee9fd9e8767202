"""Prompt tuning: trains a few vectors before the text over a frozen model (arXiv:2104.08691).

python -m launch.train --config=configs/prompt.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft
from configs.parts.methods import tuned


def get_config() -> ConfigDict:
    return tuned(sft.get_config(), "prompt")
