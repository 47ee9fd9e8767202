"""Learns to generate a target text from a source text: translation, summaries, answers to questions.

    python -m launch.train --config=configs/text2text.py --config.data.path=pairs.jsonl --workdir=runs/text2text

The argument is a size of configs/sizes/, of an encoder-decoder or a decoder. With --config.init_from=DIR the
architecture and the parameters come from that workdir, such as an imported T5. Then the argument may also be a method
of configs/parts/methods.py, such as lora; only the method's parameters train.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.parts.methods import METHODS, tuned
from configs.sizes import DECODERS, ENCODER_DECODERS


def get_config(argument: str = "tiny_encdec") -> ConfigDict:
    size = "tiny_encdec" if argument in METHODS else argument
    config = base(size, ENCODER_DECODERS | DECODERS, tuple(METHODS))
    config.data.sources = ()
    config.data.path = ""  # .csv, .tsv, .jsonl or .json with the columns that config.data.pairs names
    config.data.format = "pairs"
    config.batch_size = 8
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    return tuned(config, argument) if argument in METHODS else config
