"""PPO with a critic of its own, a KL with a target, and rows of text: all that a round of InstructGPT's method has."""

import re
import signal

import jax
import numpy as np
import pytest

from launch.run import restore
from launch.run.workdirs import Workdir
from launch.train import train
from launch.training import replay, runs
from model import axes
from model.weights import by_name
from tests.launch.conftest import TEXT
from tests.launch.methods import test_reward
from tests.launch.methods.test_policy import asked, configured, evaluations, saved
from tests.launch.methods.test_reward import rankings
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics

pytestmark = pytest.mark.xdist_group("policy")
_ = asked, rankings  # fixtures

BATCH, COEFFICIENT, TARGET, HORIZON = 16, 0.05, 0.4, 40


@pytest.fixture(scope="module")
def reward(base, data_dir, rankings, tmp_path_factory):
    """The workdir of a reward model."""
    workdir = tmp_path_factory.mktemp("reward") / "run"
    config = test_reward.configured("tiny", base, data_dir, rankings)
    config.steps = config.eval_every = config.checkpoint_every = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])
        train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of short documents."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        (folder / f"{i}.txt").write_text(TEXT.format(i) * 3)
    return folder


@pytest.fixture
def config(base, data_dir, text, asked, reward):
    changes = {"objective.critic": "model", "reward.model": str(reward), "objective.text": 0.5, "rollouts.text_rows": 2}
    changes |= {"objective.kl": COEFFICIENT, "objective.kl_target": TARGET, "objective.kl_horizon": float(HORIZON)}
    changes |= {"rollouts.epochs": 1, "data.sources": ((f"files:{text}/*.txt", 0.1),)}
    return configured("ppo", "tiny", base, data_dir, asked, **changes)


def test_the_critic_begins_as_the_reward_model(config, reward, tmp_path):
    run = runs.opened(config, tmp_path / "run", ())
    with axes.use_mesh(run.mesh):
        tx = run.optimizer()
        state = run.state(tx, Checkpoints(tmp_path / "run"), 0)
    found, wanted = (by_name(model) for model in (state.critic.model, restore.for_inference(Workdir(reward))[1]))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_it_continues_bit_for_bit(config, tmp_path, capsys):
    """With the coefficient of the KL, which moves after each round, and with the next rows of text."""

    def stop(step, figures):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    assert train(config, tmp_path / "whole")
    assert not train(config, tmp_path / "run", observe=stop)
    config.check_every = 2  # steps that are computed twice change nothing
    assert train(config, tmp_path / "run")
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")
    assert saved(tmp_path / "run") == saved(tmp_path / "whole")
    names = ("step", "kl", "kl_coefficient", "text_loss", "value_loss")
    whole, run = (
        [[row[name] for name in names] for row in metrics.read(tmp_path / name / "metrics.jsonl") if "text_loss" in row]
        for name in ("whole", "run")
    )
    assert whole == run and [step for step, *_ in run] == [1, 2, 3, 4, 5, 6]
    coefficient, errors = COEFFICIENT, []
    for _, kl, found, text_loss, _ in run:
        assert found == pytest.approx(coefficient, rel=1e-9) and text_loss < 6
        errors.append(min(max(kl / TARGET - 1, -0.2), 0.2))  # arXiv:1909.08593, section 2.2
        coefficient *= 1 + errors[-1] * BATCH / HORIZON
    assert min(errors) < 0 < max(errors) and run[-1][3] < run[0][3]
    capsys.readouterr()
    replay.show(config, tmp_path / "whole", (), 5)
    check_replay(capsys.readouterr().out, tmp_path / "whole")


def check_replay(said, workdir):
    """The step is repeated with the same figures, and a row's loss is its own: without that of the rows of text."""
    (row,) = (row for row in metrics.read(workdir / "metrics.jsonl") if row["step"] == 5 and "loss" in row)
    found = dict(re.findall(r"^(loss|grad_norm|text_loss|value_loss) +([\d.e+-]+)$", said, re.MULTILINE))
    assert len(found) == 4 and {name: float(value) for name, value in found.items()} == pytest.approx(
        {n: row[n] for n in found}, rel=1e-5
    )
    rows = (workdir / "replay" / "5.txt").read_text()
    heads = re.findall(r"^== row \d+ of the batch, (answers|text|padding).*, loss (\S+)$", rows, re.MULTILINE)
    answers = [float(loss) for origin, loss in heads if origin == "answers"]
    # The mean over the tokens of all rows is the policy's loss. A row of text has no answer, so no loss of its own.
    assert min(answers) < row["policy_loss"] < max(answers)
    assert [head for head in heads if head[0] == "text"] == [("text", "nan")] * 2
