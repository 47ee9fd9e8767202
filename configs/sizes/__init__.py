"""Published sizes: SIZES[name] holds the architecture fields of ModelConfig, with the values of the released
config.json.

Every field that the family sets is present, so that a flag can override it. The context length (`max_length`) is that
of the release. Left out: how a size is trained (dropout, precision, remat), which each config decides.
"""

from configs.sizes import tiny
from configs.sizes.decoders import SIZES as _DECODERS
from configs.sizes.encoder_decoders import SIZES as _ENCODER_DECODERS
from configs.sizes.encoders import SIZES as _ENCODERS
from configs.sizes.gemma import SIZES as _GEMMA
from configs.sizes.llama import SIZES as _LLAMA
from configs.sizes.mixtures import SIZES as _MIXTURES

DECODERS = {**tiny.DECODERS, **_LLAMA, **_GEMMA, **_DECODERS, **_MIXTURES}
ENCODERS = {**tiny.ENCODERS, **_ENCODERS}
ENCODER_DECODERS = {**tiny.ENCODER_DECODERS, **_ENCODER_DECODERS}
SIZES = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}


def sized(name: str, sizes: dict[str, dict], methods: tuple[str, ...] = ()) -> dict:
    """Returns the fields of one of `sizes`; `methods` are other valid arguments, for the error message.

    Raises:
      ValueError: there is no such size.
    """
    if name not in sizes:
        more = f"; over config.init_from also: {', '.join(methods)}" if methods else ""
        raise ValueError(f"unknown size {name!r}; configs/sizes/ has {', '.join(sizes)}{more}")
    return sizes[name]
