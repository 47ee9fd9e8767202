"""Supervised fine-tuning of every parameter on conversations or instructions.

    python -m launch.train --config=configs/sft.py --config.init_from=DIR --config.data.path=instructions.json ...

The model comes from config.init_from. configs/lora.py, adapter.py, prompt.py and qlora.py train fewer parameters over
it.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.sizes import SIZES


def get_config(size: str = "tiny") -> ConfigDict:
    """Returns the config; `size`, of configs/sizes/, only matters without config.init_from."""
    config = base(size, SIZES)
    config.data.sources = ()  # text to mix in, such as (("stdlib", 0.2),); with weight 0 it is only evaluated
    config.data.format = "chat"
    config.batch_size = 8
    config.steps = 500
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 20
    config.optimizer.weight_decay = 0.01
    config.eval_every = 100
    config.checkpoint_every = 100
    return config
