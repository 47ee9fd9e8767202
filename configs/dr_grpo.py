"""Dr. GRPO: GRPO without its biases towards long wrong answers and easy prompts (arXiv:2503.20783)."""

from ml_collections import ConfigDict

from configs import grpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = grpo.get_config(argument)
    config.objective.scale = "none"
    config.objective.average = "constant"
    return config
