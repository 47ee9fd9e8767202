"""Train a model to label texts (a class or a number) or words.

    python -m launch.train --config=configs/classify.py --config.data.path=news.csv --workdir=runs/news

The argument is a decoder's or an encoder's size from configs/sizes/. With --config.init_from=DIR, architecture and
parameters come from that workdir; then the argument may also be a method of configs/parts/methods.py, such as lora,
which trains only its own parameters and the head.

--config.data.labels.kind=number predicts numbers, and =token labels words. The other fields of config.data.labels name
the fields of the data, of their split and of a second text (data/examples/labels.py).
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.parts.methods import METHODS, tuned
from configs.sizes import DECODERS, ENCODERS


def get_config(argument: str = "tiny_encoder") -> ConfigDict:
    size = "tiny_encoder" if argument in METHODS else argument
    config = base(size, DECODERS | ENCODERS, tuple(METHODS))
    config.model.head = ""  # set by config.data.labels.kind
    config.model.num_labels = 0  # set by the data
    config.model.dropout = 0.1
    config.objective = ConfigDict(dict(name="labels", label_smoothing=0.0, balance_loss=0.0, router_z_loss=0.0))
    config.optimizer.learning_rate = 1e-4
    config.data.sources = ()
    config.data.path = ""  # .csv, .tsv, .jsonl or .json with the fields text and label; for words tokens and labels
    config.data.format = "labels"
    config.data.validation = 0.1
    config.eval_rows = 0  # all
    return tuned(config, argument) if argument in METHODS else config
