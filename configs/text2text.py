"""Train from an input text to an output text: translation, summaries, answers to questions.

    python -m launch.train --config=configs/text2text.py --config.data.path=pairs.jsonl --workdir=runs/text2text

The argument is an encoder-decoder's or a decoder's size from configs/sizes/. With --config.init_from=DIR, architecture
and parameters come from that workdir, such as an imported T5; then the argument may also be a method of
configs/parts/methods.py, such as lora, which trains only its own parameters.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.parts.methods import METHODS, tuned
from configs.sizes import DECODERS, ENCODER_DECODERS


def get_config(argument: str = "tiny_encdec") -> ConfigDict:
    size = "tiny_encdec" if argument in METHODS else argument
    config = base(size, ENCODER_DECODERS | DECODERS, tuple(METHODS))
    config.data.sources = ()
    config.data.path = ""  # .csv, .tsv, .jsonl or .json with the fields of config.data.pairs
    config.data.format = "pairs"
    config.batch_size = 8
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    return tuned(config, argument) if argument in METHODS else config
