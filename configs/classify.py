"""Learns to classify texts, to predict a number for a text, or to tag words.

    python -m launch.train --config=configs/classify.py --config.data.path=news.csv --workdir=runs/news

The argument is a size of configs/sizes/, of a decoder or an encoder. With --config.init_from=DIR the architecture and
the parameters come from that workdir. Then the argument may also be a method of configs/parts/methods.py, such as lora;
only the method's parameters and the head train.

--config.data.labels.kind=number predicts numbers, and =token tags words. The other fields of config.data.labels name
the columns of the data: text, second text, label and split (data/examples/labels.py).
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.parts.methods import METHODS, tuned
from configs.sizes import DECODERS, ENCODERS


def get_config(argument: str = "tiny_encoder") -> ConfigDict:
    size = "tiny_encoder" if argument in METHODS else argument
    config = base(size, DECODERS | ENCODERS, tuple(METHODS))
    config.model.head = ""  # chosen by config.data.labels.kind
    config.model.num_labels = 0  # 0: the number of classes in the data
    config.model.dropout = 0.1
    config.objective = ConfigDict(dict(name="labels", label_smoothing=0.0, balance_loss=0.0, router_z_loss=0.0))
    config.optimizer.learning_rate = 1e-4
    config.data.sources = ()
    # .csv, .tsv, .jsonl or .json with the fields text and label; for tagged words with the fields tokens and labels.
    config.data.path = ""
    config.data.format = "labels"
    config.data.validation = 0.1
    config.eval_rows = 0  # all
    return tuned(config, argument) if argument in METHODS else config
