"""The model that the methods tune."""

import jax
import pytest

from configs import pretrain_decoder
from launch.train import train
from tests.launch.conftest import shrink


@pytest.fixture(scope="session")
def base(tmp_path_factory, corpus, data_dir):
    """The workdir of a model that was trained for a few steps."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    config = shrink(pretrain_decoder.get_config(), data_dir, corpus)
    config.steps = config.checkpoint_every = 3
    config.eval_every, config.model.max_length = 0, 192
    config.data.tokenizer.chat = "chatml"  # whose prompts are short
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])
        train(config, workdir)
    return workdir
