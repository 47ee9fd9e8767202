"""Online DPO: learns from the best and the worst of several answers of its own (arXiv:2402.04792)."""

from ml_collections import ConfigDict

from configs import dpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = dpo.get_config(argument)
    config.data.path = ""
    config.data.format = "prompts"
    config.batch_size = 64  # answers per step
    config.steps = 200
    config.log_every = 1
    config.eval_every = config.checkpoint_every = 20
    config.rollouts.group = 4
    config.early_stopping.metric = "validation/reward"
    return config
