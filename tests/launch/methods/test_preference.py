"""DPO over another run's model, with all parameters and with LoRA: metrics, stops, best checkpoints, user errors."""

import dataclasses
import functools
import json
import math
import shutil
import signal

import numpy as np
import pytest

from configs import dpo, prompt, sft
from launch.answers import grading, held_out
from launch.answers.completer import Completer
from launch.answers.completion import Request
from launch.conversion import adapters
from launch.program.checking import ConfigError
from launch.run import build, companions, init_from, models, restore
from launch.run.workdirs import Workdir
from launch.train import train
from model import axes
from model.weights import by_name
from tests.launch.conftest import refused, shrink
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics

pytestmark = pytest.mark.xdist_group("preference")  # one worker makes the base

ARGUMENTS = ["tiny", "lora"]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    path = tmp_path_factory.mktemp("preferences") / "foxes.jsonl"
    rows = ({"prompt": f"{i} fox?", "chosen": f"{i} red", "rejected": f"{i} blue"} for i in range(40))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configured(argument, base, data_dir, preferences, **fields):
    config = shrink(dpo.get_config(argument), data_dir, preferences)
    config.init_from, config.steps, config.eval_every, config.checkpoint_every = str(base), 8, 2, 2
    config.data.preferences.template = "chatml"
    config.data.update(path=str(preferences), sources=(), split="document", seq_len=128)
    config.eval_rows, config.early_stopping.metric, config.model.max_length = 0, "validation/accuracy", 192
    config.update_from_flattened_dict(fields)
    return config


def evaluations(workdir):
    names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    return {
        row["step"]: {name: row[f"validation/{name}"] for name in names}
        for row in metrics.read(workdir / "metrics.jsonl")
        if "validation/accuracy" in row
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base, data_dir, preferences):
    """argument -> the workdir of a finished run, made in the first test that asks."""

    @functools.cache
    def make(argument):
        workdir = tmp_path_factory.mktemp(argument) / "run"
        assert train(configured(argument, base, data_dir, preferences), workdir)
        return workdir

    return make


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_it_learns(argument, finished):
    whole = evaluations(finished(argument))
    assert list(whole) == [0, 2, 4, 6, 8]
    assert whole[0] == pytest.approx(  # the model is its reference
        {"loss": math.log(2), "accuracy": 0.5, "margin": 0, "chosen_reward": 0, "rejected_reward": 0}, abs=1e-5
    )
    assert whole[8]["accuracy"] == 1 and whole[8]["margin"] > 0.1 and whole[8]["loss"] < whole[0]["loss"]
    for figures in whole.values():
        assert figures["margin"] == pytest.approx(figures["chosen_reward"] - figures["rejected_reward"], abs=1e-5)
    train_lines = [row for row in metrics.read(finished(argument) / "metrics.jsonl") if "learning_rate" in row]
    assert all({"loss", "accuracy", "margin"} <= {*row} and "perplexity" not in row for row in train_lines)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_stopped_run_goes_on_bit_for_bit(argument, finished, base, data_dir, preferences, tmp_path):
    def stop(step, figures):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    config = configured(argument, base, data_dir, preferences)
    assert not train(config, tmp_path / "run", observe=stop)
    assert train(config, tmp_path / "run")
    assert evaluations(tmp_path / "run") == evaluations(finished(argument))
    record = Workdir(tmp_path / "run").companions()
    if argument == "lora":
        assert record == {}  # the base under the adapter
    else:
        assert (record["reference"]["workdir"], record["reference"]["step"]) == (str(base), 3)


def latest(workdir):
    _, model, _ = restore.for_inference(Workdir(workdir))
    return {name: np.asarray(array, np.float64) for name, array in by_name(model).items()}


def test_an_adapter_stands_on_the_reference(base, finished):
    """The base is as it was, and the checkpoint has the adapter alone."""
    before, after = latest(base), latest(finished("lora"))
    names = {name for name in after if name.endswith(("/a", "/b"))}
    assert all(after[name].any() for name in names) and names
    own = {name.removesuffix("/base"): after[name] for name in {*after} - names}
    assert own.keys() == before.keys() and all(np.array_equal(own[name], before[name]) for name in own)
    size = lambda run: sum(path.stat().st_size for path in (run / "checkpoints" / "8" / "model").rglob("*"))
    assert size(finished("lora")) < size(finished("tiny"))


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_what_is_evaluated_later_is_what_the_run_saw(argument, finished):
    """As launch.evaluate does it."""
    run = Workdir(finished(argument))
    config, prepared = run.config, run.prepared
    mesh, model, _ = restore.for_inference(run, build.mesh(config), "8")
    with axes.use_mesh(mesh):
        objective = models.objective(config, prepared.labels)
        beside = companions.found(objective, config, model, run.companions("8")).models
        eval_step = build.make_eval_step(objective)
        found = held_out.Evaluation(config, prepared, None, objective, eval_step, mesh)(model, None, beside)
    saw = evaluations(run.path)[8]
    assert {name: found[f"validation/{name}"] for name in saw} == pytest.approx(saw, abs=1e-5)


@pytest.mark.parametrize("argument", ["lora", "qlora"])
def test_a_run_over_an_adapter_begins_at_its_reference(argument, finished, base, data_dir, preferences, tmp_path):
    """All parameters train from an adapter's merged weights, and the reference is that same model."""
    source = finished(argument)
    config = configured("tiny", source, data_dir, preferences, steps=3, eval_every=3, checkpoint_every=3)
    assert train(config, tmp_path / "run")
    (row,) = [row for row in metrics.read(tmp_path / "run" / "metrics.jsonl") if row.get("validation/kl") == 0]
    assert row["step"] == 0 and row["validation/margin"] == 0 and row["validation/accuracy"] == 0.5


def test_a_merged_run_keeps_its_reference(base, finished, tmp_path, monkeypatch):
    """Also where the program runs in the workdir of another model."""
    monkeypatch.chdir(finished("tiny"))
    adapters.merge(Workdir(finished("lora")), tmp_path / "merged")
    run = Workdir(tmp_path / "merged")
    config, objective = run.config, models.objective(run.config)
    with axes.use_mesh(build.mesh(config)):
        _, model, _ = restore.for_inference(run, build.mesh(config))
        beside = companions.found(objective, config, model, run.companions())
    assert beside.record["reference"]["workdir"] == str(base)
    config.init_from = ""
    with pytest.raises(ConfigError, match=r"init_from is empty, but .* needs a reference"):
        companions.found(objective, config, model, {})


def test_the_best_and_the_end_are_those_of_the_largest_accuracy(base, data_dir, preferences, tmp_path, capsys):
    config = configured("tiny", base, data_dir, preferences, **{"early_stopping.patience": 2, "steps": 40})
    assert train(config, tmp_path / "run")
    found = {step: figures["accuracy"] for step, figures in evaluations(tmp_path / "run").items()}
    best = min(step for step, value in found.items() if value == max(found.values()))
    assert max(found.values()) > found[0] and max(found) == best + 4 < 40
    said = capsys.readouterr().out
    assert f"Ended early: validation/accuracy was best at step {best} ({max(found.values()):.4g})" in said
    checkpoints = Checkpoints(tmp_path / "run", metric="validation/accuracy", reading=True)
    assert checkpoints.find("") == checkpoints.find("best") == best
    checkpoints.close()


def test_a_model_is_asked_as_it_was_tuned(finished):
    run = Workdir(finished("tiny"))
    (one,) = Completer(run.config, run.tokenizer, run.architecture).completions([Request("1 fox?", max_new_tokens=4)])
    assert one.answers and run.tokenizer.decode(one.prompt).endswith("user\n1 fox?\nassistant\n")


def test_answers_are_compared_with_the_chosen_ones(finished):
    run = Workdir(finished("lora"))
    settings = grading.settings(run.config, metrics="exact_match", max_new_tokens=2, rows=3)
    mesh, model, words = restore.for_inference(run)
    with axes.use_mesh(mesh):
        answers = list(grading.Grader(run.config, run.prepared, run.architecture, words, settings).answers(model))
    assert len(answers) == 3 and all(one.reference == one.prompt.replace("fox?", "red") for one in answers)


def test_conversations_are_written_as_in_the_run_before(base, data_dir, preferences, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "tuned")
    record = json.loads((tmp_path / "tuned" / "config.json").read_text())
    chat = {"template": "chatml", "system": "Be brief."}
    record["data"] |= {"path": "a.jsonl", "sources": [], "format": "chat", "chat": chat}
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(record))
    config = configured("tiny", tmp_path / "tuned", data_dir, preferences)
    config.data.preferences.template = "auto"
    found, _ = init_from.resolve(config, None)
    for kind in ("chat", "preferences", "rankings"):
        assert found.data[kind].template == "chatml" and found.data[kind].system == "Be brief."
    assert "warning" not in capsys.readouterr().err
    config.data.preferences.template = "alpaca"
    found, _ = init_from.resolve(config, None)
    assert (found.data.preferences.template, found.data.preferences.system) == ("alpaca", "")
    assert "warning: conversations are written with the template alpaca" in capsys.readouterr().err
    config.init_from, config.data.preferences.template = str(base), "auto"  # the base was tuned on no conversations
    found, _ = init_from.resolve(config, None)
    assert found.data.preferences.template == "auto"


def test_user_errors(base, data_dir, preferences, tmp_path):
    config = configured("tiny", base, data_dir, preferences)

    def made(**fields):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        return changed

    where = tmp_path / "run"
    refused(made(init_from=""), where, ConfigError, "config.init_from is empty", "'preference' needs a reference")
    refused(made(**{"objective.beta": 0.0}), where, ConfigError, "config.objective.beta is 0.0; it must be ")
    refused(made(**{"adapt.method": "prompt"}), where, ConfigError, "config.adapt.method prompt puts vectors")
    with pytest.raises(ConfigError, match=r"config\.data\.chat\.system is set, but nothing reads it"):
        train(config, where, chosen=["data.chat.system"])
    refused(made(**{"data.format": "chat"}), where, ConfigError, "can learn only from preferences", "also has chat")
    for config_of in (sft, prompt):
        other = shrink(config_of.get_config(), data_dir, preferences)
        other.init_from = str(base)
        other.data.update(path=str(preferences), sources=(), format="preferences")
        refused(other, where, ConfigError, "would learn the rejected answers too", "configs/dpo.py")
    assert not where.exists()


def test_methods():
    """Those of configs/parts/methods.py but prompt tuning; the learning rate is larger for them."""
    whole = dpo.get_config()
    for method in ("lora", "qlora", "adapter"):
        config = dpo.get_config(method)
        assert config.adapt.method == ("lora" if method == "qlora" else method)
        assert config.objective == whole.objective and config.data == whole.data
        assert config.optimizer.learning_rate > whole.optimizer.learning_rate
    with pytest.raises(ValueError, match=r"unknown size 'prompt'.*also: lora, qlora, adapter$"):
        dpo.get_config("prompt")
    assert {field.name for field in dataclasses.fields(models.objective(whole))} == {*whole.objective} - {"name"}
