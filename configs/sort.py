"""A problem with a verifiable reward, small enough for two CPU cores: letters that the model should sort.

    python -m launch.train --config=configs/sort.py:sft --workdir=runs/sort/sft
    python -m launch.train --config=configs/sort.py:grpo --workdir=runs/sort/grpo

The first run learns four kinds of answers to prompts like "hbaoc=", and nothing says which one is wanted: the letters
ascending (30 % of the examples), descending (25 %), reversed (25 %) or unchanged (20 %). The second run is rewarded for
ascending letters alone. The argument may also be rloo, ppo, or another config for prompts.
"""

from ml_collections import ConfigDict

from configs import dapo, dr_grpo, grpo, gspo, ppo, reinforce, rloo, sft

_POLICIES = {"grpo": grpo, "dr_grpo": dr_grpo, "dapo": dapo, "gspo": gspo}
_POLICIES |= {"rloo": rloo, "reinforce": reinforce, "ppo": ppo}


def get_config(argument: str = "grpo") -> ConfigDict:
    if argument == "sft":
        return _started()
    if argument not in _POLICIES:
        raise ValueError(f"unknown argument {argument!r}; choose from sft, {', '.join(_POLICIES)}")
    config = _POLICIES[argument].get_config()
    config.init_from = "runs/sort/sft"
    config.data.path = "data/suites/sort/prompts.jsonl.gz"
    config.data.seq_len = 64
    config.model.dtype = "float32"
    config.reward.functions = (("exact:answer", 1.0),)
    config.rollouts.max_new_tokens = 8
    config.rollouts.group = 8
    config.batch_size = 128
    config.steps = 60
    config.eval_every = config.checkpoint_every = 20
    config.objective.update(kl=0.0, kl_in="loss", kl_estimator="k3")  # no reference, so the last two are not read
    config.optimizer.update(learning_rate=3e-4, schedule="cosine", warmup_steps=3, beta2=0.99)
    if argument in ("ppo", "reinforce"):
        config.rollouts.group = 1
    if argument == "ppo":
        config.rollouts.epochs = 2
        config.steps = 160  # 80 rounds
        config.optimizer.update(learning_rate=5e-5, schedule="constant")
    return config


def _started() -> ConfigDict:
    config = sft.get_config()
    config.model.update(embed_dim=128, mlp_dim=344, num_kv_heads=4, dtype="float32")
    config.data.path = "data/suites/sort/tasks.jsonl.gz"
    config.data.chat.template = "plain"
    config.data.seq_len = 128
    config.data.tokenizer.update(kind="char", vocab_size=0)
    config.steps = 1000
    config.optimizer.update(learning_rate=1.5e-3, beta2=0.99)
    config.eval_every = config.checkpoint_every = 500
    return config
