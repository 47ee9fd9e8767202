"""What a run reads executes nothing: Python tells of every object that an unpickler looks up."""

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
    """Names that were looked up since. A hook can't be taken away, only made deaf."""
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
    """Data, tokenizer, checkpoint and metrics are read again, and what was trained is restored for inference."""
    tiny.steps, tiny.checkpoint_every = 6, 3
    train(tiny, tmp_path / "run")
    jax.clear_caches()
    (tmp_path / "run" / "checkpoints" / "6" / "manifest.json").unlink()  # so that it goes on from the one before
    assert train(tiny, tmp_path / "run")
    restore.for_inference(Workdir(tmp_path / "run"))
    assert heard == {}


def test_a_published_model(tmp_path, monkeypatch, heard):
    """A config, weights in safetensors, and a tokenizer."""
    shutil.copytree(hub.reference("llama")[1], tmp_path / "hub")
    tokenizer.train(["some text, " * 50], "char").save(tmp_path / "hub" / "tokenizer.json")
    heard.clear()
    module.import_folder(tmp_path / "hub", tmp_path / "run")
    restore.for_inference(Workdir(tmp_path / "run"))
    assert heard == {}
