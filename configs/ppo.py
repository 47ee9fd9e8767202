"""PPO with a critic, as for InstructGPT (arXiv:1707.06347, arXiv:2203.02155).

    python -m launch.train --config=configs/ppo.py --config.init_from=SFT --config.reward.model=REWARD
        --config.data.path=prompts.jsonl ...

config.objective.critic is 'head', a linear layer on the policy's hidden states, or 'model', a model of its own, which
begins as the reward model (or as config.init_from, if there is none).
"""

from ml_collections import ConfigDict

from configs import grpo


def get_config(argument: str = "tiny") -> ConfigDict:
    config = grpo.get_config(argument)
    config.objective.advantages = "gae"
    config.objective.scale = "none"
    config.objective.whiten = True
    config.objective.average = "tokens"
    config.objective.kl, config.objective.kl_in, config.objective.kl_estimator = 0.05, "reward", "k1"
    config.objective.critic = "head"
    config.optimizer.critic_rate = 10.0  # a new head has everything to learn, the policy little
    config.rollouts.group = 1
    config.rollouts.epochs = 4
    return config
