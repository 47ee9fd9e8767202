"""REINFORCE with the mean reward of a round as its baseline (Williams, 1992, doi:10.1007/BF00992696)."""

from ml_collections import ConfigDict

from configs import grpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = grpo.get_config(argument)
    config.objective.advantages = "batch"
    config.objective.scale = "none"
    config.objective.average = "constant"
    config.objective.clip_low = config.objective.clip_high = 0.0
    config.rollouts.group = 1
    return config
