"""KTO over another run's model, with all parameters and with LoRA: it learns, and continues bit for bit."""

import json
import signal

import pytest

from configs import kto
from launch.program.checking import ConfigError
from launch.train import train
from tests.launch.conftest import refused, shrink
from train.record import metrics

pytestmark = pytest.mark.xdist_group("preference")  # the worker that makes the base


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    path = tmp_path_factory.mktemp("judged") / "foxes.jsonl"
    rows = ({"prompt": f"{i} fox?", "completion": "red" if i % 2 else "blue", "label": i % 2 == 1} for i in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configured(argument, base, data_dir, judged):
    config = shrink(kto.get_config(argument), data_dir, judged)
    config.init_from, config.steps, config.eval_every, config.checkpoint_every = str(base), 8, 4, 4
    config.data.unpaired.template = "chatml"
    config.data.update(path=str(judged), sources=(), split="document", seq_len=128)
    config.eval_rows, config.model.max_length = 0, 192
    return config


def evaluations(workdir):
    rows = [row for row in metrics.read(workdir / "metrics.jsonl") if "validation/margin" in row]
    return {row["step"]: {name: row[f"validation/{name}"] for name in ("loss", "accuracy", "margin")} for row in rows}


@pytest.mark.parametrize("argument", ["tiny", "lora"])
def test_it_learns_and_continues_after_a_stop(argument, base, data_dir, judged, tmp_path):
    def stop(step, figures):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    config = configured(argument, base, data_dir, judged)
    assert train(config, tmp_path / "whole")
    found = evaluations(tmp_path / "whole")
    # The model is its reference.
    assert found[0] == pytest.approx({"loss": 0.5, "accuracy": 0.5, "margin": 0}, abs=1e-6)
    assert found[8]["margin"] > 0.05 and found[8]["loss"] < 0.5
    assert not train(config, tmp_path / "run", observe=stop)
    assert train(config, tmp_path / "run")
    assert evaluations(tmp_path / "run") == found


def test_mistakes_are_named_early(base, data_dir, judged, tmp_path):
    config = configured("tiny", base, data_dir, judged)
    config.init_from = ""
    refused(config, tmp_path / "run", ConfigError, "config.init_from is empty", "'kto' needs a reference")
    config = configured("tiny", base, data_dir, judged)
    config.data.format = "preferences"
    refused(config, tmp_path / "run", ConfigError, "can learn only from unpaired answers", "has preferences")
