"""GSPO: GRPO with one ratio for the whole answer (arXiv:2507.18071)."""

from ml_collections import ConfigDict

from configs import grpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = grpo.get_config(argument)
    config.objective.ratio = "mean"
    config.objective.clip_low, config.objective.clip_high = 3e-4, 4e-4
    config.rollouts.minibatches = 4
    return config
