"""Published sizes: SIZES[name] are the architecture fields of ModelConfig, with the values of the released config.json.

Every field that the family sets is there, so that a flag can override it. Context (`max_length`) is what the release
says. How a size is trained (dropout, precision, remat) is not here: that is each config's own.
"""

from configs.sizes.decoders import SIZES as _DECODERS
from configs.sizes.encoders import SIZES as _ENCODERS
from configs.sizes.gemma import SIZES as _GEMMA
from configs.sizes.llama import SIZES as _LLAMA
from configs.sizes.mixtures import SIZES as _MIXTURES

DECODERS = {**_LLAMA, **_GEMMA, **_DECODERS, **_MIXTURES}
ENCODERS = {**_ENCODERS}
SIZES = {**DECODERS, **ENCODERS}
