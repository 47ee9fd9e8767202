"""Creates the critic of a policy: the model of values that PPO trains beside it (config.objective.critic)."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from launch.program.checking import ConfigError
from launch.run import build, restore
from launch.run.workdirs import Workdir
from model import architectures
from model.config import ModelConfig
from model.value_head import ValueHead
from train import state as states
from train.state import Critic


def check(config: ConfigDict) -> None:
    """Checks that a critic that begins as the reward model can read the policy's rows.

    Raises:
      ConfigError: its tokenizer is another one, or its context is too short.
    """
    if config.objective.get("critic") != "model" or not config.reward.model:
        return
    reward = Workdir(Path(config.reward.model).absolute())
    own = Workdir(Path(config.init_from).absolute()).tokenizer if config.init_from else None
    if own is None or own.fingerprint != reward.tokenizer.fingerprint:
        raise ConfigError(
            f"config.objective.critic 'model' begins as the reward model {config.reward.model}, whose tokenizer is not "
            "that of config.init_from; set it to 'head', or train a reward model from config.init_from"
        )
    if reward.architecture.max_length < config.data.seq_len:
        raise ConfigError(
            f"config.objective.critic 'model' begins as the reward model {config.reward.model}, whose context of "
            f"{reward.architecture.max_length} tokens is shorter than config.data.seq_len {config.data.seq_len}"
        )


def optimizer(config: ConfigDict, model: ModelConfig):
    """Returns the optimizer of the critic; None: there is no critic."""
    if not config.objective.get("critic"):
        return None
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.optimizer.learning_rate *= config.optimizer.critic_rate
        # Patterns are about the policy's parameters.
        config.optimizer.decay, config.optimizer.rates = (), ((".*", 1.0),)
    return build.optimizer(config, _config(model))


def create(config: ConfigDict, pretrained: Workdir | None, model: ModelConfig, resume: bool) -> Critic | None:
    """Returns the critic that a run begins with, or its shapes if a checkpoint will be loaded into it.

    A critic of its own begins as the reward model, if config.reward.model names one, else as the policy with a new
    head.

    Args:
      config: the whole config.
      pretrained: the workdir that config.init_from names.
      model: the architecture of the policy.
      resume: whether a checkpoint will be loaded.
    """
    kind, tx = config.objective.get("critic"), optimizer(config, model)
    if tx is None:
        return None
    if kind == "head":
        make = lambda rngs: ValueHead(model, rngs)
        return states.abstract_critic(make, tx) if resume else states.critic(states.made(make, config.seed), tx)
    source = Workdir(Path(config.reward.model).absolute()) if config.reward.model else pretrained
    there = _config(model if source is None else _like(source.architecture, model))
    make = lambda rngs: architectures.make(there, rngs)
    if resume:
        return states.abstract_critic(make, tx)
    if source is None:
        return states.critic(states.made(make, config.seed), tx)
    step = config.init_step if source is pretrained else ""
    found, _, _ = restore.pretrained(source, there, config.seed, step=step)
    return states.critic(found, tx)


def _config(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, head="sequence", num_labels=1, cuts=())


def _like(there: ModelConfig, model: ModelConfig) -> ModelConfig:
    """Returns the architecture with the dtypes and kernels of the policy."""
    same = ("dtype", "param_dtype", "attention", "context", "remat", "scan_unroll", "pipeline_slots", "pipeline_groups")
    return dataclasses.replace(there, **{name: getattr(model, name) for name in same})
