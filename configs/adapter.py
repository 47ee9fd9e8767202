"""Fine-tunes bottleneck adapters in each block of a frozen model (arXiv:1902.00751, arXiv:2005.00247).

python -m launch.train --config=configs/adapter.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft
from configs.parts.methods import tuned


def get_config() -> ConfigDict:
    return tuned(sft.get_config(), "adapter")
