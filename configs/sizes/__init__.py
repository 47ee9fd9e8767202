"""Published sizes: SIZES[name] has the architecture fields of ModelConfig, with the values of the released config.json.

A size sets every field that its family defines, so that flags can override it. `max_length` is the context length of
the release. Fields that concern training (dropout, precision, remat) are left out, because each config sets its own.
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
    """Returns the fields of the size `name`. `methods` are further arguments that the config accepts, for the error.

    Raises:
      ValueError: the size is unknown.
    """
    if name not in sizes:
        more = f"; with config.init_from also: {', '.join(methods)}" if methods else ""
        raise ValueError(f"unknown size {name!r}; configs/sizes/ has {', '.join(sizes)}{more}")
    return sizes[name]
