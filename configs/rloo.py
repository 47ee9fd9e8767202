"""RLOO: REINFORCE whose baseline is the reward of the other answers to a prompt (arXiv:2402.14740)."""

from ml_collections import ConfigDict

from configs import grpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = grpo.get_config(argument)
    config.objective.advantages = "rloo"
    config.objective.scale = "none"
    config.objective.ratio = "sequence"
    config.objective.kl, config.objective.kl_in, config.objective.kl_estimator = 0.05, "reward", "k1"
    config.rollouts.group = 4
    return config
