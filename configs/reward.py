"""Trains a reward model on rankings of answers.

    python -m launch.train --config=configs/reward.py --config.init_from=DIR --config.data.path=rankings.jsonl ...

The model comes from config.init_from, usually a workdir that was tuned on conversations. Its head gives one score; it
is new, unless config.init_from already gives a single score. The argument may be a method, such as lora: then only the
method's parameters and the head train. Without init_from it is a size of configs/sizes/, of a decoder.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.parts.methods import METHODS, tuned
from configs.sizes import DECODERS


def get_config(argument: str = "tiny") -> ConfigDict:
    config = base("tiny" if argument in METHODS else argument, DECODERS, tuple(METHODS))
    config.model.head = ""  # chosen by the objective
    config.model.num_labels = 1
    config.objective = ConfigDict(
        dict(
            name="reward",
            method="pairs",  # pairs (Bradley-Terry), list (Plackett-Luce); train/objectives/reward.py
            margin=0.0,  # how much margins count that config.data.rankings.margin states, for pairs; 1 in Llama 2
            centre=0.0,  # weight of the squared sum of a pair's scores, which keeps them near 0; 0.01 in its paper
            balance_loss=0.0,
            router_z_loss=0.0,
        )
    )
    config.data.sources = ()
    config.data.path = ""  # .jsonl or .json, in the forms of data/examples/judged/comparisons.py
    config.data.format = "rankings"
    config.data.validation = 0.1
    config.batch_size = 8
    config.steps = 500
    config.eval_every = 100
    config.eval_rows = 0  # all
    config.checkpoint_every = 100
    config.optimizer.warmup_steps = 20
    config.optimizer.learning_rate = 1e-5
    return tuned(config, argument) if argument in METHODS else config
