"""Small random models: one that talks, and one that scores answers."""

import jax
import pytest

from configs import reward, sft
from data.tokens import tokenizer
from launch.run import models, workdirs
from model import axes
from tests.model import tiny

SMALL = dict(num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, vocab_size=0)


def made(config, workdir, seed=0, labels=None, **fields):
    """Writes the workdir of a model with random parameters, as if it was tuned on conversations in ChatML."""
    config.model.update(SMALL | dict(max_length=2048, dtype="float32") | fields)
    config.data.update(path="made.jsonl", seq_len=256)
    for kind in ("chat", "rankings"):
        config.data[kind].template = "chatml"
    words = tokenizer.train((), "byte", specials=["<|im_start|>", "<|im_end|>"])
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        shape = models.model_config(config, words.vocab_size, 0 if labels is None else 1)
        workdirs.create(workdir, config.to_dict(), tiny.drawn(shape, seed), words, labels)
    return workdir


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    return made(sft.get_config(), tmp_path_factory.mktemp("talker") / "run")


@pytest.fixture(scope="session")
def rewarder(tmp_path_factory):
    labels = {"kind": "number", "read": "last"}
    return made(reward.get_config(), tmp_path_factory.mktemp("rewarder") / "run", 1, labels)
