"""DAPO: GRPO with a mean over tokens, a higher upper clip and prompts that teach something (arXiv:2503.14476)."""

from ml_collections import ConfigDict

from configs import grpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = grpo.get_config(argument)
    config.objective.average = "tokens"
    config.objective.clip_high = 0.28
    config.rollouts.resample = 3
    config.rollouts.truncated = "mask"
    return config
