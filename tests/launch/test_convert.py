"""A checkpoint folder in and out, and a model that was trained here out."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from data import tokenizer
from launch import build
from launch.train import train
from model import axes
from model.decode.generate import generate
from model.interop.folder import Folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    words = tokenizer.train(["some text, " * 50], "byte")
    settings = dict(vocab_size=words.vocab_size + 7, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    settings |= dict(intermediate_size=48, max_position_embeddings=128, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.save_pretrained(path, max_shard_size="20KB")
    words.save(path / "tokenizer.json")
    return path


def convert(**flags):
    """The command, with eight devices."""
    words = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run([sys.executable, "-m", "launch.convert", *words], capture_output=True, text=True)


def test_in_and_out(folder, tmp_path):
    done = convert(from_hf=folder, workdir=tmp_path / "run")
    assert ": llama, 3" in done.stdout, done.stderr
    mesh, model, words = build.restore_for_inference(tmp_path / "run")
    with axes.use_mesh(mesh):
        assert generate(model, [words.encode("some")], jax.random.key(0), max_new_tokens=3).lengths == [3]
    assert convert(workdir=tmp_path / "run", to_hf=tmp_path / "out").returncode == 0
    old, new = Folder(folder), Folder(tmp_path / "out")
    assert old.tensors.keys() == new.tensors.keys()
    for name in old.tensors:
        np.testing.assert_array_equal(old.read(name), new.read(name))
    assert tokenizer.load(tmp_path / "out" / "tokenizer.json").encode("some") == words.encode("some")
    with pytest.raises(build.ConfigError, match="reads no data"):
        build.adopted(tmp_path / "run")
    again = convert(from_hf=folder, workdir=tmp_path / "run")
    assert again.returncode == 1 and "holds a run already" in again.stderr and "Traceback" not in again.stderr
    absent = convert(from_hf=tmp_path / "nothing", workdir=tmp_path / "new")
    assert absent.stderr.startswith("error: there is no folder") and not (tmp_path / "new").exists()


def test_a_model_trained_here_loads_in_transformers(tiny, tmp_path):
    tiny.steps = 2
    tiny.optimizer.warmup_steps = 1
    train(tiny, tmp_path / "run")
    assert convert(workdir=tmp_path / "run", to_hf=tmp_path / "out").returncode == 0
    mesh, model, _ = build.restore_for_inference(tmp_path / "run")
    tokens = np.arange(12, dtype=np.int32)[None] + 40
    with axes.use_mesh(mesh):
        ours = model.logits(jnp.asarray(tokens))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(tokens).long()).logits, atol=2e-4)
