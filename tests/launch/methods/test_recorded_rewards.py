"""A run that continues is rewarded as before: by the same step of a reward model, and by the same file."""

import signal

import pytest

from configs import reward
from launch.program.checking import ConfigError
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import refused, shrink
from tests.launch.methods.test_policy import REWARDS, asked, configured, evaluations, saved

__all__ = ["asked"]
pytestmark = pytest.mark.xdist_group("policy")


def stop(at):
    return lambda step, figures: signal.raise_signal(signal.SIGTERM) if step == at else None


def test_a_run_is_rewarded_as_before(base, data_dir, asked, tmp_path):
    rankings, judge, own = tmp_path / "rankings.jsonl", tmp_path / "judge", tmp_path / "rewards.py"
    own.write_text(REWARDS)
    row = '{{"prompt": "{0}?", "answers": [{{"answer": "a {0}", "rank": 1}}, {{"answer": "fox", "rank": 2}}]}}\n'
    rankings.write_text("".join(row.format(number) for number in range(30)))
    config = shrink(reward.get_config(), data_dir, rankings)
    config.init_from, config.model.max_length, config.steps = str(base), 192, 2
    config.eval_every = config.checkpoint_every = 1
    config.optimizer.warmup_steps = 0
    config.data.update(path=str(rankings), sources=(), split="document", seq_len=64)
    config.data.rankings.template = "chatml"
    assert not train(config, judge, observe=stop(1))
    changes = {"reward.functions": ((f"{own}:vowels", 1.0),), "reward.model": str(judge)}
    policy = configured("rloo", "tiny", base, data_dir, asked, **changes)
    assert train(policy, tmp_path / "whole")
    assert not train(policy, tmp_path / "run", observe=stop(3))
    assert train(config, judge)  # the reward model trains on
    own.write_text(REWARDS.replace("/ 8", "/ 9"))
    message = f"config.reward.functions: {own} is not the same as when the run began"
    refused(policy, tmp_path / "run", ConfigError, message)
    own.write_text(REWARDS)
    assert train(policy, tmp_path / "run")
    assert Workdir(tmp_path / "run").companions()["reward.model"]["step"] == 1
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")
    assert saved(tmp_path / "run") == saved(tmp_path / "whole")
