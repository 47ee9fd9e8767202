"""Pre-training at a size for two CPU cores: a LLaMA-style decoder on Python's standard library, in a few minutes."""

from ml_collections import ConfigDict

from configs import pretrain_decoder


def get_config() -> ConfigDict:
    config = pretrain_decoder.get_config("tiny")
    config.steps = 720
    config.batch_size = 8
    config.model.dtype = "float32"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 72
    config.optimizer.final = 0.02
    config.data.tokenizer.vocab_size = 4096
    config.eval_every = 180
    config.checkpoint_every = 180
    return config
