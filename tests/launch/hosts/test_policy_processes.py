"""Two processes that learn from rollouts give the figures and the parameters of one: only the first runs rewards."""

import json
import signal

import numpy as np
import pytest

from configs import ppo
from launch.run import restore
from launch.run.workdirs import Workdir
from launch.train import train
from model.weights import by_name
from tests.launch.conftest import shrink
from tests.launch.hosts.test_processes import one_device, start
from tests.launch.methods.test_policy import REWARDS
from tests.launch.training.test_kills import logged

_ = one_device  # a fixture that gives this process four devices, as many as two of the others have together


@pytest.fixture
def config(tmp_path, data_dir):
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{i} fox?", "good": "aeiou"} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = shrink(ppo.get_config(), data_dir, tmp_path / "prompts.jsonl")
    config.steps, config.eval_every, config.checkpoint_every, config.eval_rows = 12, 6, 12, 0
    config.batch_size, config.model.num_kv_heads, config.model.max_length = 8, 4, 192
    config.mesh.update(fsdp=2, tensor=2)
    config.objective.kl, config.check_every = 0.0, 4
    config.data.prompts.template = config.data.tokenizer.chat = "chatml"
    config.data.update(path=str(tmp_path / "prompts.jsonl"), sources=(), split="document", seq_len=64)
    config.rollouts.update(max_new_tokens=8, group=2, minibatches=2, epochs=2)
    config.reward.functions = ((f"{tmp_path}/rewards.py:vowels", 1.0), ("length:1-4", 0.5))
    return config


def test_two_processes_give_the_figures_of_one(config, tmp_path):
    """Also after a stop, between two rounds or in the middle of one."""
    assert train(config, tmp_path / "one")
    stopped = start(config, tmp_path / "two", 2, signals={1: (2, signal.SIGTERM)})
    assert [status for status, *_ in stopped] == [0, 0] and "saved. To continue" in stopped[0][1], stopped
    ended = start(config, tmp_path / "two", 2)
    assert [status for status, *_ in ended] == [0, 0], ended
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert one == two and sum("reward" in row for row in two) == 3  # rounds
    models = [by_name(restore.for_inference(Workdir(tmp_path / name))[1]) for name in ("one", "two")]
    for name, array in models[0].items():
        np.testing.assert_array_equal(array, models[1][name], err_msg=name)
