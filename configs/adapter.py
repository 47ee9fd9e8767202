"""Bottleneck adapters in each block of a frozen model (arXiv:1902.00751, arXiv:2005.00247).

python -m launch.train --config=configs/adapter.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft


def get_config(size: str = "tiny") -> ConfigDict:
    config = sft.get_config(size)
    config.adapt = ConfigDict(dict(method="adapter", placement="pfeiffer", reduction=16, activation="relu"))
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    return config
