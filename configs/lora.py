"""Low-rank adapters over a frozen model (arXiv:2106.09685).

python -m launch.train --config=configs/lora.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import sft


def get_config(size: str = "tiny") -> ConfigDict:
    config = sft.get_config(size)
    config.adapt = ConfigDict(dict(method="lora", rank=8, alpha=16.0, dropout=0.0, rank_stabilized=False))
    # Which weights get an adapter, by patterns over their names; the first one found decides.
    config.adapt.targets = (("attention|cross|feed_forward", True), (".*", False))
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    return config
