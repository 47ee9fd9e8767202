"""Tests that the files of a run can't execute code: Python reports every object that an unpickler looks up."""

import collections
import pickle
import shutil
import sys

import jax
import pytest

from data.tokens import tokenizer
from launch import convert as module
from launch.run import restore
from launch.run.workdirs import Workdir
from launch.train import train
from tests.model.interop import hub

_heard = None


def _listen(event, arguments):
    if _heard is not None and event == "pickle.find_class":
        _heard[f"{arguments[0]}.{arguments[1]}"] += 1


@pytest.fixture
def heard():
    """Counts the names that are looked up during a test. An audit hook can't be removed, only switched off."""
    global _heard
    if _heard is None:
        sys.addaudithook(_listen)
    _heard = collections.Counter()
    yield _heard
    _heard = None


def test_a_pickle_is_heard(heard):
    pickle.loads(pickle.dumps(collections.OrderedDict))
    assert heard == {"collections.OrderedDict": 1}


def test_a_run_that_goes_on(tiny, tmp_path, heard):
    """Reads data, tokenizer, checkpoint and metrics again, and restores the model for inference."""
    tiny.steps, tiny.checkpoint_every = 6, 3
    train(tiny, tmp_path / "run")
    jax.clear_caches()
    # So that it continues from the previous checkpoint:
    (tmp_path / "run" / "checkpoints" / "6" / "manifest.json").unlink()
    assert train(tiny, tmp_path / "run")
    restore.for_inference(Workdir(tmp_path / "run"))
    assert heard == {}


def test_a_published_model(tmp_path, monkeypatch, heard):
    """Imports a config, weights in safetensors, and a tokenizer."""
    shutil.copytree(hub.reference("llama")[1], tmp_path / "hub")
    tokenizer.train(["some text, " * 50], "char").save(tmp_path / "hub" / "tokenizer.json")
    heard.clear()
    module.import_folder(tmp_path / "hub", tmp_path / "run")
    restore.for_inference(Workdir(tmp_path / "run"))
    assert heard == {}
