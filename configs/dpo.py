"""Direct preference optimization: learns to prefer the chosen of two answers (arXiv:2305.18290).

    python -m launch.train --config=configs/dpo.py --config.init_from=DIR --config.data.path=preferences.jsonl ...

The model and its frozen reference come from config.init_from, usually a workdir that was tuned on conversations. The
argument may be a method, such as lora: only the method's parameters train, and the reference is the model without them,
which takes no memory. A row holds as many pairs of answers as fit into it, so a batch has more pairs than
config.batch_size.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.parts.methods import METHODS, tuned
from configs.sizes import DECODERS

# Prompt tuning is left out, because its vectors take places in the rows, which the reference would read too.
_METHODS = tuple(name for name in METHODS if name != "prompt")


def get_config(argument: str = "tiny") -> ConfigDict:
    config = base("tiny" if argument in _METHODS else argument, DECODERS, _METHODS)
    config.objective = ConfigDict(
        dict(
            name="preference",
            method="dpo",  # dpo, robust, ipo, hinge, simpo, orpo (train/objectives/preference.py)
            beta=0.1,  # a larger one keeps the model nearer to the reference; 2 to 2.5 for simpo
            label_smoothing=0.0,  # fraction of the labels that are taken to be flipped, for dpo, robust and simpo
            target_margin=0.0,  # of simpo; about half of beta in its paper
            per_token=False,  # divide the scores of answers by their lengths; True for ipo in TRL
            sft=0.0,  # weight of the negative log-likelihood of better answers; 1 for orpo
            balance_loss=0.0,
            router_z_loss=0.0,
            precompute=False,  # True: the reference's log-probabilities are computed once and stored with the rows
        )
    )
    config.data.sources = ()
    config.data.path = ""  # .jsonl, .json, .csv or .tsv with the fields that config.data.preferences names
    config.data.format = "preferences"
    config.data.validation = 0.1
    config.batch_size = 8
    config.steps = 500
    config.eval_every = 100
    config.eval_rows = 0  # all
    config.checkpoint_every = 100
    config.optimizer.warmup_steps = 20
    if argument in _METHODS:
        config = tuned(config, argument)
    config.optimizer.weight_decay = 0.0
    # Less than for other tuning: 1e-6 in the paper's experiments, and about ten times as much for adapters.
    config.optimizer.learning_rate = 1e-5 if argument in _METHODS else 1e-6
    return config
