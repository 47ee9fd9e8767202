"""Tests runs with a frozen reference model: they start, stop and continue, and another reference is refused."""

import dataclasses
import json
import shutil
import signal
from typing import ClassVar

import jax.numpy as jnp
import pytest

from configs import lora, pretrain_decoder, sft
from launch.program.checking import ConfigError
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import refused, shrink
from train.losses import Loss
from train.objectives import table
from train.objectives.language import Language
from train.objectives.objective import Companion
from train.record import metrics


@dataclasses.dataclass(frozen=True)
class Near(Language):
    """Language modelling that stays near the reference; `apart` is the mean squared distance of the logits."""

    companions: ClassVar = (Companion("reference", "init_from"),)
    lower_is_better: ClassVar = {"apart": True}

    def __call__(self, model, batch, key, *, reference) -> Loss:
        rows = [batch[name] for name in ("tokens", "segment_ids", "positions")]
        own, other = (m.output(m(*rows).x_BTD).logits() for m in (model, reference))
        weights_BT = batch["weights"]
        apart = (jnp.square(own - other).mean(-1) * weights_BT).sum()
        loss = super().__call__(model, batch, key)
        return Loss(loss.total + apart, loss.weight, loss.metrics | {"apart": apart})

    def figures(self, loss, held_out):
        return super().figures(loss, held_out) | {"apart": float(loss.metrics["apart"] / loss.weight)}


@pytest.fixture
def base(tmp_path, corpus, data_dir):
    config = shrink(pretrain_decoder.get_config(), data_dir, corpus)
    config.steps = config.checkpoint_every = 3
    config.eval_every = 0
    workdir = tmp_path / "base"
    assert train(config, workdir)
    return workdir


@pytest.fixture
def near(monkeypatch):
    monkeypatch.setitem(table.OBJECTIVES, "near", Near)


def configured(name, base, data_dir, corpus):
    config = shrink(name.get_config(), data_dir, corpus)
    config.data.path = ""
    config.init_from = str(base)
    config.steps, config.eval_every, config.checkpoint_every = 4, 2, 2
    config.objective.name = "near"
    config.early_stopping.metric = "validation/apart"
    return config


def evaluations(workdir):
    return {
        row["step"]: row["validation/apart"]
        for row in metrics.read(workdir / "metrics.jsonl")
        if "validation/apart" in row
    }


@pytest.mark.parametrize("name", [sft, lora], ids=["sft", "lora"])
def test_a_run_with_a_reference_continues_bit_for_bit(near, name, base, data_dir, corpus, tmp_path):
    config = configured(name, base, data_dir, corpus)
    assert train(config, tmp_path / "whole")
    whole = evaluations(tmp_path / "whole")
    assert whole[0] == 0 and min(whole[2], whole[4]) > 0  # it starts at the reference and moves away from it

    def stop(step, figures):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    assert not train(config, tmp_path / "stopped", observe=stop)
    assert train(config, tmp_path / "stopped")
    assert evaluations(tmp_path / "stopped") == whole
    record = Workdir(tmp_path / "stopped").companions()
    if name is lora:
        assert record == {}  # the base under the adapter is the reference, so nothing is recorded
    else:
        assert (record["reference"]["workdir"], record["reference"]["step"]) == (str(base), 3)


def test_another_reference_than_the_run_began_with(near, base, data_dir, corpus, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    config = configured(sft, moved, data_dir, corpus)
    config.steps = config.eval_every = config.checkpoint_every = 3
    assert train(config, tmp_path / "run")
    other = shrink(pretrain_decoder.get_config(), data_dir, corpus)
    other.seed, other.steps, other.checkpoint_every, other.eval_every = 1, 3, 3, 0
    shutil.rmtree(moved)
    assert train(other, moved)
    config.steps = 6
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(record | {"steps": 6}))
    refused(config, tmp_path / "run", ConfigError, "holds another model than when the run began")


def test_a_companion_without_a_workdir_is_refused(near, data_dir, corpus, tmp_path):
    config = shrink(pretrain_decoder.get_config(), data_dir, corpus)
    config.objective.name = "near"
    refused(
        config, tmp_path, ConfigError, "config.init_from is empty, but config.objective.name 'near' needs a reference"
    )
