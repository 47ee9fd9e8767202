"""KTO: learns from answers that are judged one at a time, as good or bad (arXiv:2402.01306).

    python -m launch.train --config=configs/kto.py --config.init_from=DIR --config.data.path=judged.jsonl ...

The model and its frozen reference come from config.init_from, usually a workdir that was tuned on conversations. The
argument may be a method, such as lora: only the method's parameters train, and the reference is the model without them,
which takes no memory. A row holds as many answers as fit into it, each with one of another prompt beside it.
"""

from ml_collections import ConfigDict

from configs import dpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = dpo.get_config(argument)
    config.objective = ConfigDict(
        dict(
            name="kto",
            beta=0.1,  # a larger one keeps the model nearer to the reference
            good_weight=1.0,  # weights of the losses of good and bad answers; lower that of the more frequent ones
            bad_weight=1.0,
            balance_loss=0.0,
            router_z_loss=0.0,
            precompute=False,  # True: the reference's log-probabilities are computed once and stored with the rows
        )
    )
    config.data.path = ""  # .jsonl, .json, .csv or .tsv with the fields that config.data.unpaired names
    config.data.format = "unpaired"
    return config
