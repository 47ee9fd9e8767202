"""Safety tuning: a chat model learns to refuse harmful requests, and to help with harmless ones that look like them.

    python -m launch.train --config=configs/safety.py --config.init_from=DIR --workdir=DIR ...

It is supervised tuning on refusals and on helpful answers. config.data.path may add conversations of any kind, so that
the model keeps what it can do. Evaluations answer held-out prompts of both kinds: an evaluation is the best one if it
answers the fewest harmful prompts, but only while it refuses at most config.early_stopping.bound of the harmless ones.
The small sets that ship (data/suites/safety) show that a run works; a model that people use needs far larger ones.

The argument may be a method, such as lora. Then only the method's parameters train.
"""

from ml_collections import ConfigDict

from configs import sft
from configs.parts.methods import METHODS, tuned

_SETS = "data/suites/safety"


def get_config(argument: str = "tiny") -> ConfigDict:
    config = sft.get_config("tiny" if argument in METHODS else argument)
    # Equal weights. A model that sees far more refusals than help learns to refuse everything.
    config.data.sources = ((f"chat:{_SETS}/refusals.jsonl", 1.0), (f"chat:{_SETS}/helpful.jsonl", 1.0))
    config.data.validation = 0.1
    config.safety.prompts = f"{_SETS}/held_out.jsonl"
    config.early_stopping.metric = "validation/harmful_answered"
    config.early_stopping.bounded = "validation/over_refusal"
    config.early_stopping.bound = 0.1
    config.steps = 100
    config.optimizer.warmup_steps = 10
    config.eval_every = 20
    config.checkpoint_every = 20  # as often as evaluations, so that the best one is saved
    return tuned(config, argument) if argument in METHODS else config
