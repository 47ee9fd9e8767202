"""Tests --dtype: a model in the precision of its folder or run, or in another one."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from data.tokens import tokenizer
from launch import convert
from launch.answers.classifier import Classifier
from launch.run import restore
from launch.run.workdirs import Workdir
from model import axes
from model.weights import by_name

TOKENS = np.arange(12, dtype=np.int32)[None] + 40


def folder(path, dtype, kind=transformers.LlamaForCausalLM, **more):
    """Writes a tiny LLaMA in `dtype`."""
    words = tokenizer.train(["some text, " * 50], "byte")
    settings = dict(vocab_size=words.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    settings |= dict(intermediate_size=48, max_position_embeddings=64, eos_token_id=words.eot_id, pad_token_id=1)
    torch.manual_seed(0)
    kind(transformers.LlamaConfig(**settings, initializer_range=0.3, **more)).to(dtype).save_pretrained(path)
    words.save(path / "tokenizer.json")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_folder_decides_and_dtype_changes_it(stored, tmp_path):
    folder(tmp_path / "hf", stored)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    name = str(stored).removeprefix("torch.")
    convert.import_folder(tmp_path / "hf", tmp_path / "run")
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS).long()).logits
    scores = {}
    for dtype in (None, "float32", "bfloat16"):
        mesh, model, _ = restore.for_inference(Workdir(tmp_path / "run"), dtype=dtype)
        held = dtype or name
        assert (model.config.dtype, model.config.param_dtype) == (held, held)
        assert {leaf.dtype.name for leaf in by_name(model).values()} == {held}
        with axes.use_mesh(mesh):
            scores[dtype] = np.asarray(model.logits(jnp.asarray(TOKENS)), np.float32)
    np.testing.assert_allclose(scores["float32"], expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(scores[None], scores[name])
    assert 1e-4 < abs(scores["bfloat16"] - scores["float32"]).max() < 0.5


def test_a_classifier_in_another_precision(tmp_path):
    folder(tmp_path / "hf", torch.float32, transformers.LlamaForSequenceClassification, num_labels=3)
    convert.import_folder(tmp_path / "hf", tmp_path / "run")
    texts = [("some text", None)]
    rows = {
        dtype: next(Classifier(Workdir(tmp_path / "run"), dtype=dtype)(texts))
        for dtype in (None, "float32", "bfloat16")
    }
    np.testing.assert_array_equal(rows[None], rows["float32"])
    assert 0 < abs(rows["bfloat16"] - rows["float32"]).max() < 0.1


def command(name, *words):
    environment = os.environ | {"XLA_FLAGS": ""}  # one device
    line = [sys.executable, "-m", f"launch.{name}", *words]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


def test_the_flag(tmp_path):
    folder(tmp_path / "hf", torch.float32)
    convert.import_folder(tmp_path / "hf", tmp_path / "run")
    greedy = ("--prompt=some", "--temperature=0", "--max_new_tokens=4")
    done = command("generate", f"--workdir={tmp_path / 'run'}", "--dtype=bfloat16", *greedy)
    assert done.returncode == 0 and done.stdout.startswith("some"), done.stderr
    wrong = command("classify", f"--workdir={tmp_path / 'run'}", "--dtype=float16")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: flag --dtype=float16: "), wrong.stderr
    assert "<float32|bfloat16>" in wrong.stderr
