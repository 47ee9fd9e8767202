"""Reward models over another run's model, with all parameters and with LoRA: metrics, stops, what reads them."""

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from configs import reward
from data.examples import kinds
from data.examples.example import Context
from launch.answers.scorer import Scorer
from launch.conversion.hugging_face import export, import_folder
from launch.program.checking import ConfigError
from launch.run import restore
from launch.run.workdirs import Workdir
from launch.train import train
from model import axes
from model.weights import by_name
from tests.launch.conftest import refused, shrink
from train.objectives.reward import BINS
from train.record import metrics

pytestmark = pytest.mark.xdist_group("reward")  # one worker makes the base


@pytest.fixture(scope="module")
def rankings(tmp_path_factory):
    """Lists of three answers, of which the longer one is better."""
    path = tmp_path_factory.mktemp("rankings") / "foxes.jsonl"
    answers = [{"answer": "fox " * count, "rank": 4 - count} for count in (1, 2, 3)]
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "answers": answers}) + "\n" for i in range(40)))
    return path


def configured(argument, base, data_dir, rankings):
    config = shrink(reward.get_config(argument), data_dir, rankings)
    config.init_from, config.steps, config.eval_every, config.checkpoint_every = str(base), 8, 4, 4
    config.data.rankings.template = "chatml"
    config.data.update(path=str(rankings), sources=(), split="document", seq_len=192)
    config.eval_rows, config.early_stopping.metric, config.model.max_length = 0, "validation/accuracy", 192
    return config


def evaluations(workdir):
    rows = [row for row in metrics.read(workdir / "metrics.jsonl") if "validation/accuracy" in row]
    return {row["step"]: {name: row[f"validation/{name}"] for name in ("loss", "accuracy", "margin")} for row in rows}


def forms(texts):
    """Returns records of all forms that can be scored: a single answer, a pair, a conversation, and a list."""
    first, second, third = texts
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": third}]
    items = [{"text": text} for text in texts]
    pair = {"prompt": "1?", "chosen": first, "rejected": second}
    return [pair, {"messages": turns}, {"prompt": "1?", "answers": items[:2]}, {"prompt": "1?", "response": third}]


@pytest.mark.parametrize("argument", ["tiny", "lora"])
def test_it_learns_and_continues_after_a_stop(argument, base, data_dir, rankings, tmp_path):
    def stop(step, figures):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    config = configured(argument, base, data_dir, rankings)
    assert train(config, tmp_path / "whole")
    found = evaluations(tmp_path / "whole")
    assert list(found) == [0, 4, 8]
    arrays = [row["validation/reliability"] for row in metrics.read(tmp_path / "whole" / "metrics.jsonl")[-1:]]
    assert np.shape(arrays) == (1, BINS, 3)
    assert found[8]["accuracy"] > 0.85 and found[8]["loss"] < found[0]["loss"] and found[8]["margin"] > 0.1
    assert not train(config, tmp_path / "run", observe=stop)
    assert train(config, tmp_path / "run")
    assert evaluations(tmp_path / "run") == found
    config = Workdir(tmp_path / "run").architecture
    assert (config.head, config.num_labels) == ("sequence", 1)
    mesh, model, words = restore.for_inference(Workdir(tmp_path / "run"))
    assert np.asarray(by_name(model)["classifier/weight"], np.float32).any()
    if argument == "tiny":
        export(tmp_path / "run", tmp_path / "hf")
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
        # Their template writes a conversation as it was scored in training.
        turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "fox fox"}]
        ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").apply_chat_template(turns)["input_ids"]
        kind, settings = kinds.KINDS["rankings"], kinds.checked({"rankings": {"template": "chatml"}})["rankings"]
        record = kind.parse({"prompt": "1?", "chosen": "fox fox", "rejected": "fox"}, settings)
        chosen, _ = kind.encoding(settings, Context(words, 192, False, lambda: iter(()))).encode(record)
        assert ids == chosen.tokens.tolist() and np.flatnonzero(chosen.trained).tolist() == [len(ids) - 1]
        tokens = np.array([ids], np.int32)
        with torch.no_grad():
            score = theirs(torch.tensor(tokens, dtype=torch.int64)).logits
        with axes.use_mesh(mesh):
            found = model.classes(model(tokens).x_BTD)[:, -1]
        np.testing.assert_allclose(found, score.numpy(), atol=1e-5)
        texts = ["fox", "fox fox", "x"]
        asked = [{"messages": turns[:1], "answer": {"role": "assistant", "content": text}} for text in texts]
        (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in forms(texts)))
        import_folder(tmp_path / "hf", tmp_path / "imported")
        for source in (tmp_path / "run", tmp_path / "imported"):
            scores = list(Scorer(Workdir(source))(asked))
            np.testing.assert_allclose(scores[1], score.item(), atol=1e-5)
            assert len({round(value, 5) for value in scores}) == 3
            command = [sys.executable, "-m", "launch.classify", f"--workdir={source}", f"--file={tmp_path}/asked.jsonl"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows = [line.split("\t") for line in said.splitlines()]
            assert [text for _, text in rows] == ["fox", "fox fox", "x", "fox", "fox fox", "x"]
            np.testing.assert_allclose([float(value) for value, _ in rows], scores * 2, rtol=1e-4, atol=1e-6)
        # A reward model that goes on from it, or from its imported export, begins with its scores.
        for source in (tmp_path / "run", tmp_path / "imported"):
            with axes.use_mesh(mesh):
                again, _, new = restore.pretrained(Workdir(source), config)
                other = dataclasses.replace(config, num_labels=2)
                assert restore.pretrained(Workdir(source), other)[2] == ["classifier/weight"]
            assert not new
            weight = by_name(model)["classifier/weight"]
            np.testing.assert_array_equal(by_name(again)["classifier/weight"], weight)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "accuracy of pairs" in report and "No evaluation yet" not in report


def test_mistakes_are_named_early(base, data_dir, rankings, tmp_path):
    config = configured("tiny", base, data_dir, rankings)
    config.model.num_labels = 2
    refused(config, tmp_path / "run", ConfigError, "needs a decoder with head 'sequence' and 1 label")
    config = configured("tiny", base, data_dir, rankings)
    config.data.format = "preferences"
    refused(config, tmp_path / "run", ConfigError, "'reward' can learn only from rankings", "has preferences")
    assert not list(tmp_path.iterdir())
