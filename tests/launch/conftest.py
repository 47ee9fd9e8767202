"""Fixtures with a run small enough to repeat many times: two layers, 40 rows of text, one device."""

import csv
import functools
import importlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags

from configs import pretrain_decoder
from launch import convert  # noqa: F401

del flags.FLAGS.workdir  # defined by launch.convert; launch.train, imported in the same process, defines it again
from launch.train import train  # noqa: E402
from tests.launch.pods.standins import ROOT, Tools  # noqa: E402
from train.record import mfu  # noqa: E402
from train.report import plots  # noqa: E402

TEXT = "the quick brown fox jumps over the lazy dog, {} times; and then it does so again.\n"


def shrink(config, data_dir, text):
    """Shrinks a config for tests in place and returns it: only numbers and the text change."""
    config.steps, config.batch_size, config.log_every = 8, 8, 1
    config.eval_every, config.eval_rows, config.checkpoint_every = 4, 8, 4
    config.mesh.update(data=1, fsdp=1, tensor=1)
    heads = dict(num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
    config.model.update(heads, vocab_size=0, max_length=64, dtype="float32", scan_unroll=1)
    config.optimizer.update(warmup_steps=2, learning_rate=1e-2)
    config.data.update(dir=str(data_dir), sources=((f"files:{text}", 1.0),), seq_len=32, validation=0.2, split="tail")
    config.data.tokenizer.update(kind="byte", vocab_size=0, path="")
    return config


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "fox.txt"
    path.write_text("".join(TEXT.format(i) for i in range(100)))
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def tiny(corpus, data_dir):
    return shrink(pretrain_decoder.get_config(), data_dir, corpus)


_rate = functools.cache(mfu.measure_matmul_rate)


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """Saves a second in each of hundreds of runs: the matmul rate is measured only once, and only
    tests/train/report/test_run_report.py and subprocesses draw plots."""
    monkeypatch.setattr(mfu, "measure_matmul_rate", _rate)
    monkeypatch.setattr(plots, "svg", lambda *_, **__: "")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Gives each test one device, however many the session has."""
    monkeypatch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path)


def pytest_itemcollected(item):
    """Runs each file on one worker, because the tests of a file share a run that every worker would have to repeat."""
    if not item.get_closest_marker("xdist_group"):
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A finished run with checkpoints 4 and 8, trained by the first test of a file that needs it."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"

    def make(config):
        if not workdir.exists():
            train(config, workdir)
        return workdir

    return make


STEPS = {"decoder": 60, "moe": 60, "encdec": 90, "encoder": 300}
# With these, a family of transformers has the same model.
FIELDS = {"moe": {"experts.mlp_dim": 48}, "encoder": {"num_kv_heads": 4}, "encdec": {"num_kv_heads": 4}}
# All tests of one of these runs share a worker.
ARCHITECTURES = [pytest.param(name, marks=pytest.mark.xdist_group(f"pretrain_{name}")) for name in STEPS]


@pytest.fixture(scope="session")
def trained(corpus, data_dir, tmp_path_factory):
    """Returns a function: name -> workdir of a run of configs/pretrain_NAME.py, long enough to learn something.

    The first test that calls it trains the run, because a test has one device but a session fixture has all of them.
    """

    @functools.cache
    def make(name):
        config = shrink(importlib.import_module(f"configs.pretrain_{name}").get_config(), data_dir, corpus)
        config.steps = config.log_every = config.eval_every = config.checkpoint_every = STEPS[name]
        config.batch_size = 16
        config.model.update_from_flattened_dict(FIELDS.get(name, {}))
        workdir = tmp_path_factory.mktemp(name)
        train(config, workdir)
        return workdir

    return make


def started(program, config, workdir, *arguments):
    """Returns a finished process with one device that ran `program`, a variant of launch.train."""
    file = workdir.parent / f"{workdir.name}.py"
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({config.to_dict()!r})\n"
    )
    command = [sys.executable, "-c", program, *arguments, f"--config={file}", f"--workdir={workdir}"]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def refused(config, workdir, error, *words):
    """Checks that training fails with this error and that its message has all these words."""
    with pytest.raises(error) as caught:
        train(config, workdir)
    for word in words:
        assert word in str(caught.value)


TOPICS = {
    "sport": ["ball", "match", "goal", "team"],
    "money": ["bank", "shares", "price", "debt"],
    "sky": ["star", "moon"],
}


def text_of(random, topic) -> str:
    words = ["the", "of", "was", "and", "new", "so"]
    return (
        " ".join(random.choice(TOPICS[topic] if random.random() < 0.4 else words) for _ in range(8))
        + " "
        + TOPICS[topic][0]
    )


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("news") / "news.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("label", "text"), *((t, text_of(random, t)) for t in list(TOPICS) * 60)])
    return path
