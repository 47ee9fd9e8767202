"""A Phi-3, whose linear layers hold several of our weights: imported, tuned by LoRA, and written, with equal logits."""

import json

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from configs import lora
from data.tokens import tokenizer
from launch import convert
from launch.conversion import adapters
from launch.run import restore
from launch.run.workdirs import Workdir
from launch.train import train
from model import axes
from tests.launch.conftest import shrink

TOKENS = np.random.default_rng(0).integers(0, 257, (2, 40)).astype(np.int32)


@pytest.fixture
def imported(tmp_path):
    """Returns (the workdir of a Phi-3 with grouped heads and a window, transformers' model of it)."""
    words = tokenizer.train([], "byte")
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    shape |= dict(intermediate_size=48, max_position_embeddings=64, sliding_window=9, vocab_size=words.vocab_size)
    tokens = dict(bos_token_id=None, eos_token_id=words.eot_id, pad_token_id=None)
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**shape, **tokens)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "hf")
    words.save(tmp_path / "hf" / "tokenizer.json")
    convert.import_folder(tmp_path / "hf", tmp_path / "base")
    return tmp_path / "base", model


def ours(workdir):
    mesh, model, _ = restore.for_inference(Workdir(workdir), dtype="float32")
    with axes.use_mesh(mesh):
        return np.asarray(jax.jit(lambda model: model.logits(TOKENS))(model))


def theirs(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS).long()).logits.numpy()


def test_tuned_by_lora_and_written(imported, data_dir, tmp_path):
    base, model = imported
    np.testing.assert_allclose(ours(base), theirs(model), atol=1e-4)
    examples = [{"instruction": f"{i} fox?", "output": f"{i + 1} foxes"} for i in range(80)]
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    config = shrink(lora.get_config(), data_dir, tmp_path / "examples.json")
    config.init_from, config.adapt.rank, config.steps = str(base), 2, 4
    config.data.update(path=str(tmp_path / "examples.json"), sources=(), split="document", seq_len=64)
    run = tmp_path / "lora"
    train(config, run)
    tuned = ours(run)
    assert np.abs(tuned - theirs(model)).max() > 0.01

    adapters.to_peft(Workdir(run), tmp_path / "peft")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")
    np.testing.assert_allclose(theirs(adapted), tuned, atol=1e-4)
    adapters.from_peft(tmp_path / "peft", Workdir(base), tmp_path / "again")
    np.testing.assert_allclose(ours(tmp_path / "again"), tuned, atol=1e-4)
    convert.export(run, tmp_path / "merged", merge=True)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is transformers.Phi3ForCausalLM
    np.testing.assert_allclose(theirs(merged), tuned, atol=1e-4)
