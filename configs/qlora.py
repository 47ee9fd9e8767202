"""Low-rank adapters over a model in 4 bits: NF4 with double quantization, bfloat16 computation (arXiv:2305.14314).

python -m launch.train --config=configs/qlora.py --config.init_from=DIR --config.data.path=instructions.json ...
"""

from ml_collections import ConfigDict

from configs import lora


def get_config(size: str = "tiny") -> ConfigDict:
    config = lora.get_config(size)
    config.adapt.update(rank=64, alpha=16.0, base="nf4", double_quantization=True)  # base: nf4, int8, float
    config.model.param_dtype = "bfloat16"  # of what stays and is not quantized: tables, norms
    config.optimizer.learning_rate = 2e-4
    return config
