"""Reinforcement learning over another run's model: it continues bit for bit in the middle of a round, and
names mistakes before anything is sampled."""

import importlib
import json
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest

from data.batch import DataError
from launch.program.checking import ConfigError
from launch.run import checks, models
from launch.train import train
from model.weights import by_name
from tests.launch.conftest import refused, shrink
from train.align.rewards.reward import RewardError
from train.record import metrics

pytestmark = pytest.mark.xdist_group("policy")

REWARDS = """
def vowels(prompt, completion, columns):
    return sum(letter in columns["good"] for letter in completion) / 8

def broken(prompt, completion, columns):
    return 1 / (len(completion) - len(completion))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Returns (prompts, a file of reward functions)."""
    folder = tmp_path_factory.mktemp("asked")
    rows = [{"prompt": f"{i} fox?", "good": "aeiou", "number": i} for i in range(30)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    return folder / "prompts.jsonl", folder / "rewards.py"


def configured(name, argument, base, data_dir, asked, **changes):
    config = shrink(importlib.import_module(f"configs.{name}").get_config(argument), data_dir, asked[0])
    config.init_from, config.model.max_length = str(base), 192
    config.steps, config.eval_every, config.checkpoint_every, config.eval_rows = 6, 3, 3, 0
    config.batch_size = 16
    config.data.prompts.template = "chatml"
    config.data.update(path=str(asked[0]), sources=(), split="document", seq_len=64)
    config.rollouts.update(max_new_tokens=8, group=4)
    config.reward.functions = ((f"{asked[1]}:vowels", 1.0), ("length:1-4", 0.0))
    config.update_from_flattened_dict(changes)
    return config


def evaluations(workdir):
    rows = [row for row in metrics.read(workdir / "metrics.jsonl") if "validation/reward" in row]
    return {row["step"]: {name: value for name, value in row.items() if name.startswith("validation/")} for row in rows}


def saved(workdir):
    """Returns the bytes of every array of the last checkpoint, by name: model, critic, optimizer."""
    reader, place = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()), workdir / "checkpoints" / "6"
    parts = {part: reader.restore(place / part) for part in ("model", "training")}
    return {name: np.asarray(array).tobytes() for name, array in by_name(parts).items()}


RUNS = {
    "grpo": ("grpo", "lora", {"objective.kl": 0.05, "rollouts.epochs": 2}),
    "ppo": ("ppo", "tiny", {"rollouts.minibatches": 2, "rollouts.epochs": 2, "objective.kl_target": 6.0}),
    "pairs": ("online_dpo", "tiny", {"rollouts.minibatches": 2, "data.seq_len": 128}),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_continues_in_the_middle_of_a_round(name, base, data_dir, asked, tmp_path):
    def stop(step, figures):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    name, argument, changes = RUNS[name]
    config = configured(name, argument, base, data_dir, asked, **changes)
    assert train(config, tmp_path / "whole")
    found = evaluations(tmp_path / "whole")
    assert found[0]["validation/win_rate"] == 0.5
    assert found[6]["validation/reward"] == found[6]["validation/reward/vowels"]
    if name != "online_dpo":
        assert found[0]["validation/kl"] == pytest.approx(0, abs=1e-4) and found[6]["validation/sampler_gap"] < 1e-5
    assert not train(config, tmp_path / "run", observe=stop)
    assert train(config, tmp_path / "run")
    assert evaluations(tmp_path / "run") == found
    assert saved(tmp_path / "run") == saved(tmp_path / "whole")
    rows = [row for row in metrics.read(tmp_path / "whole" / "metrics.jsonl") if "reward" in row]
    again = [row for row in metrics.read(tmp_path / "run" / "metrics.jsonl") if "reward" in row]
    assert [row["reward"] for row in rows] == [row["reward"] for row in again]  # no round was sampled twice or lost
    if name != "online_dpo":
        assert rows[0]["ratio"] == pytest.approx(1, abs=1e-5) and rows[0]["clip_fraction"] == 0
    shown = json.loads((tmp_path / "run" / "summary.json").read_text())["completions"]
    assert (shown["first"]["step"], shown["last"]["step"]) == (0, 6)


def test_rewards_that_fail_do_not_end_the_run(base, data_dir, asked, tmp_path, capsys):
    """They are counted, printed once with a prompt, and recorded; with `skip`, nothing is learned from the answer."""
    broken = ((f"{asked[1]}:vowels", 1.0), (f"{asked[1]}:broken", 1.0))
    changes = {"reward.functions": broken, "steps": 3, "eval_every": 0}
    assert train(configured("rloo", "tiny", base, data_dir, asked, **changes), tmp_path / "run")
    rows = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert [row["failed_rewards"] for row in rows if "failed_rewards" in row] == [16] * 3
    events = [row["event"]["failed_reward"] for row in rows if "failed_reward" in row.get("event", {})]
    assert len(events) == 3 and "division by zero" in events[0] and "fox?" in events[0]
    assert capsys.readouterr().err.count("division by zero") == 1
    config = configured("rloo", "tiny", base, data_dir, asked, **changes, **{"reward.on_error": "skip"})
    with pytest.raises(DataError, match="10 rounds of rollouts in a row gave nothing to learn from"):
        train(config, tmp_path / "skips")
    config = configured("rloo", "tiny", base, data_dir, asked, **changes, **{"reward.on_error": "stop"})
    with pytest.raises(RewardError, match="division by zero"):
        train(config, tmp_path / "stops")


def test_mistakes_are_named_early(base, data_dir, asked, tmp_path):
    made = lambda **changes: configured("grpo", "tiny", base, data_dir, asked, **changes)
    say = lambda config, *words: refused(config, tmp_path / "run", ConfigError, *words)
    say(made(**{"reward.functions": ()}), "config.reward names nothing to learn from")
    say(made(**{"reward.functions": (("exakt:number", 1.0),)}), "config.reward", "exakt", "exact")
    say(made(**{"reward.model": str(base)}), "config.reward.model", "holds no reward model")
    say(made(**{"rollouts.group": 3}), "config.rollouts.group 3 does not divide the 16 completions")
    say(made(**{"rollouts.group": 1}), "config.rollouts.group is 1")
    say(made(**{"rollouts.truncated": "drop"}), "config.rollouts.truncated is 'drop'; choose from keep, mask, penalize")
    say(made(**{"rollouts.max_new_tokens": 65}), "leaves no room for a prompt")
    say(made(**{"rollouts.text_rows": 4}), "config.rollouts.text_rows has no effect")
    say(made(**{"data.format": "chat"}), "also has chat")
    sources = ((f"prompts:{asked[0]}", 1.0), (f"prompts:{asked[0].parent}/*.jsonl", 2.0))
    say(made(**{"data.path": "", "data.sources": sources}), "gives prompts the weights 1.0, 2.0")
    for field in ("model.dropout", "model.embedding_noise"):
        say(made(**{field: 0.1}), f"config.{field} is 0.1, but answers are sampled without it")
    adapted = configured("grpo", "lora", base, data_dir, asked, **{"adapt.dropout": 0.1})
    say(adapted, "config.adapt.dropout is 0.1, but answers are sampled without it")
    ppo = configured("ppo", "tiny", base, data_dir, asked, **{"rollouts.resample": 1})
    say(ppo, "config.rollouts.resample replaces prompts")
    config = made()
    config.objective = importlib.import_module("configs.sft").get_config().objective
    say(config, "config.data has prompts, which config.objective.name 'language' cannot learn")
    assert not (tmp_path / "run").exists()
    config = importlib.import_module("configs.sft").get_config()
    with pytest.raises(
        ConfigError, match=r"config\.rollouts\.group is set, but nothing reads it: config\.data holds nothing"
    ):
        train(config, tmp_path / "run", ["rollouts.group"])


def test_settings_that_nothing_reads_are_noted(base, data_dir, asked):
    changes = {"objective.lam": 0.5, "objective.kl_in": "reward", "optimizer.critic_rate": 2.0}
    config = configured("grpo", "tiny", base, data_dir, asked, **changes, **{"rollouts.truncated_penalty": 2.0})
    noted = checks.notes(config, models.model_config(config, 64), {})
    assert [note.split(" has no effect")[0] for note in noted] == [
        "note: config.objective.lam",
        "note: config.objective.kl_in",
        "note: config.optimizer.critic_rate",
        "note: config.rollouts.truncated_penalty",
    ]
