"""A run of PPO that is killed while it samples, scores, steps, saves and evaluates ends like an undisturbed one."""

import random

import pytest

from tests.launch.methods.test_policy import asked, configured, saved
from tests.launch.training.test_kills import logged, start

pytestmark = pytest.mark.xdist_group("policy")
_ = asked  # a fixture


def test_killed_anywhere(base, data_dir, asked, tmp_path):
    rng = random.Random(0)
    config = configured("ppo", "tiny", base, data_dir, asked, **{"rollouts.minibatches": 2, "rollouts.epochs": 2})
    config.checkpoint_every, config.eval_every = 2, 4  # a round has 4 steps
    for phase, count in (("sample", 1), ("score", 2), ("step", 3), ("save", 2), ("evaluate", 2)):
        start(config, tmp_path / "killed", phase, count, rng.uniform(0, 0.05))
    assert start(config, tmp_path / "killed") == 0
    assert start(config, tmp_path / "alone") == 0
    assert saved(tmp_path / "killed") == saved(tmp_path / "alone")
    assert logged(tmp_path / "killed") == logged(tmp_path / "alone")
