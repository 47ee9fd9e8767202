"""Pre-train a decoder with sparse experts. The argument is a size of configs/sizes/, such as mixtral_8x7b.

A load-balancing loss (Switch Transformer, arXiv:2101.03961) keeps the load of the experts even. If the size has a
correction bias, which only affects the choice of experts (DeepSeek-V3, arXiv:2412.19437), it does most of the
balancing, and the loss is smaller; see config.optimizer.correction_rate.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.sizes import DECODERS


def get_config(size: str = "tiny_moe") -> ConfigDict:
    config = base(size, {name: model for name, model in DECODERS.items() if model.get("experts")})
    corrected = config.model.experts.correction
    config.objective.balance_loss = 1e-4 if corrected else 1e-2
    config.objective.router_z_loss = 0.0 if corrected else 1e-3  # arXiv:2202.08906
    return config
