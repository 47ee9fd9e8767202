"""GRPO: reinforcement learning from groups of answers to each prompt (arXiv:2402.03300).

    python -m launch.train --config=configs/grpo.py --config.init_from=DIR --config.data.path=problems.jsonl
        "--config.reward.functions=(('numeric:answer', 1.0),)" ...

The model comes from config.init_from, usually a workdir that was tuned on conversations. Each step samples
config.batch_size answers, config.rollouts.group for each prompt, and scores them with config.reward: functions, a
reward model, or both. The argument may be a method, such as lora: only the method's parameters train.

configs/dapo.py, dr_grpo.py, gspo.py, rloo.py, reinforce.py and ppo.py change a few of these fields.
"""

from ml_collections import ConfigDict

from configs.parts.base import base
from configs.parts.methods import METHODS, tuned
from configs.sizes import DECODERS

# Prompt tuning is left out, because its vectors take places in the rows.
_METHODS = tuple(name for name in METHODS if name != "prompt")


def get_config(argument: str = "tiny") -> ConfigDict:
    config = base("tiny" if argument in _METHODS else argument, DECODERS, _METHODS)
    config.objective = ConfigDict(
        dict(  # train/objectives/policy.py explains every field
            name="policy",
            advantages="group",  # gae, group, rloo, batch
            scale="group",  # what advantages are divided by: the deviation of the rewards of a group, of a batch; none
            whiten=False,
            gamma=1.0,
            lam=0.95,
            ratio="token",  # token, sequence, mean
            clip_low=0.2,
            clip_high=0.2,
            average="sequences",  # tokens, sequences, constant
            constant=0.0,  # 0: rollouts.max_new_tokens
            kl=0.0,  # coefficient of the distance to config.init_from; 0: it is not needed, and not loaded
            kl_in="loss",  # loss, reward
            kl_estimator="k3",  # k1, k2, k3, k3_ratio (train/align/estimators.py)
            kl_target=0.0,
            kl_horizon=10000.0,
            entropy=0.0,
            critic="",  # head, model; for gae
            value=0.1,
            value_clip=0.2,
            text=0.0,
            balance_loss=0.0,
            router_z_loss=0.0,
        )
    )
    config.data.sources = ()
    config.data.path = ""  # .jsonl, .json, .csv or .tsv with a prompt, and columns for the rewards
    config.data.format = "prompts"
    config.data.validation = 0.1
    config.batch_size = 64  # answers per step
    config.steps = 200
    config.log_every = 1
    config.eval_every = 20
    config.eval_rows = 0  # all held-out prompts
    config.checkpoint_every = 20
    config.early_stopping.metric = "validation/reward"
    # The loss of a policy has no level, and rounds whose answers are all alike have no gradient. Beside those, a round
    # that teaches something would count as a spike.
    config.spike = 0.0
    config.optimizer.warmup_steps = 10
    if argument in _METHODS:
        config = tuned(config, argument)
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 1e-5 if argument in _METHODS else 1e-6
    return config
