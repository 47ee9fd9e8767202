"""A few vectors before the text train, and nothing of the model (arXiv:2104.08691).

python -m launch.train --config=configs/prompt.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft


def get_config(size: str = "tiny") -> ConfigDict:
    config = sft.get_config(size)
    config.adapt = ConfigDict(dict(method="prompt", length=20))
    config.adapt.init_text = ""  # what they begin as, repeated or cut; empty: vectors of tokens drawn at random
    config.optimizer.learning_rate = 0.3
    config.optimizer.weight_decay = 0.0
    return config
