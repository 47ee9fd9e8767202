"""One text for another: translation, summaries, answers to questions.

    python -m launch.train --config=configs/text2text.py --config.data.path=pairs.jsonl --workdir=runs/text2text

The argument is a size of configs/sizes/, of an encoder-decoder or a decoder; with --config.init_from=DIR architecture
and parameters are those of that workdir, such as an imported T5.
"""

from ml_collections import ConfigDict

from configs.base import base
from configs.sizes import DECODERS, ENCODER_DECODERS, sized


def get_config(size: str = "tiny_encdec") -> ConfigDict:
    config = base(sized(size, ENCODER_DECODERS | DECODERS))
    config.data.sources = ()
    config.data.path = ""  # .csv, .tsv, .jsonl or .json with the fields of config.data.pairs
    config.data.format = "pairs"
    config.batch_size = 8
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    return config
