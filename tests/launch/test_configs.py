"""Tests that every config, at a small size, trains for two steps, evaluates and saves."""

import importlib
from pathlib import Path

import pytest

from configs.parts.methods import METHODS
from launch.train import train
from tests.launch.conftest import ARCHITECTURES, STEPS, shrink
from tests.launch.test_train import losses
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics

# Configs without sources learn from their users' examples: test_classify.py and methods/ run them. So does safety.py,
# whose prompts a model of the text here can't be asked.
LONGER = ("pretrain_moe", "pretrain_encoder", "pretrain_encdec")  # test_every_architecture_beats_token_frequencies
ARGUMENTS = {"pretrain_decoder": ["gpt2", "llama3_8b"], "benchmark": ["small", "one_b"]}
NAMES = {path.stem for path in (Path(__file__).resolve().parents[2] / "configs").glob("[!_]*.py")} - {*LONGER, "safety"}
config_of = lambda name: importlib.import_module(f"configs.{name}").get_config(*ARGUMENTS.get(name, [])[:1])
FILES = {name for name in NAMES if config_of(name).data.sources}
RUNS = [(name, argument) for name in sorted(FILES) for argument in ARGUMENTS.get(name, [""])]


@pytest.mark.parametrize(("name", "argument"), RUNS, ids=[":".join(filter(None, run)) for run in RUNS])
def test_two_steps(name, argument, data_dir, corpus, tmp_path):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = shrink(get_config(argument) if argument else get_config(), data_dir, corpus)
    config.steps = config.eval_every = config.checkpoint_every = 2
    config.optimizer.warmup_steps = 1
    train(config, tmp_path)
    assert set(losses(tmp_path)) == {1, 2}
    assert Checkpoints(tmp_path).latest_step == 2
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["pretrain_decoder", "benchmark"])
def test_unknown_sizes_are_named(name):
    with pytest.raises(ValueError, match=r"unknown size 'huge'.*(tiny|small)"):
        importlib.import_module(f"configs.{name}").get_config("huge")


@pytest.mark.parametrize("name", ["classify", "text2text"])
def test_methods_are_those_of_their_own_configs(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    for method in METHODS:
        own, found = importlib.import_module(f"configs.{method}").get_config(), get_config(method)
        assert found.adapt == own.adapt and found.model.param_dtype == own.model.param_dtype
        assert found.optimizer.learning_rate == own.optimizer.learning_rate and not found.optimizer.weight_decay
        assert (found.objective, found.data) == (get_config().objective, get_config().data)
    with pytest.raises(ValueError, match=r"unknown size 'lroa'.*; with config\.init_from also: lora, qlora, adapter"):
        get_config("lroa")


def test_a_decoder_is_not_made_from_the_size_of_an_encoder():
    with pytest.raises(ValueError, match="unknown size 'bert_base_uncased'"):
        importlib.import_module("configs.pretrain_decoder").get_config("bert_base_uncased")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_beats_token_frequencies(name, trained):
    """On held-out text, by at least a quarter of a nat: the text is repetitive, but the models have 32 features."""
    workdir = trained(name)
    assert Checkpoints(workdir).latest_step == STEPS[name] and (workdir / "report.html").exists()
    (last,) = [row for row in metrics.read(workdir / "metrics.jsonl") if "validation/loss" in row]
    assert last["validation/loss"] < last["validation/unigram"] - 0.25
