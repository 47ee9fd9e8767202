"""Tests runs that begin with the parameters of another workdir, trained or imported."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from data import pipeline
from data.rows.pack import RowReader
from data.tokens import tokenizer
from data.tokens.special import EOT
from launch import convert
from launch.program.checking import ConfigError
from launch.run import build, models, restore
from launch.run.workdirs import Workdir
from launch.train import train
from model import axes
from model.weights import by_name
from tests.launch.test_train import assert_same_run, losses

BEGIN = "<s>"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns (the workdir of an imported byte-level GPT-2, transformers' model of it); its texts begin with <s>."""
    folder = tmp_path_factory.mktemp("hf")
    words = tokenizer.train([], "byte", specials=[BEGIN])
    words.save(folder / "tokenizer.json")
    names = {"bos_token": BEGIN, "eos_token": EOT, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    torch.manual_seed(0)
    shape = dict(vocab_size=300, n_positions=48, n_embd=32, n_layer=3, n_head=4)
    config = transformers.GPT2Config(**shape, bos_token_id=1, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        # Noise, so that the loss differs from that of other untrained models.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    convert.import_folder(folder, folder / "run")
    return folder / "run", model


def reference_loss(model, batch) -> float:
    """Returns the mean loss of transformers' model, computed document by document."""
    total = count = 0.0
    for tokens, targets, segments in zip(batch["tokens"], batch["targets"], batch["segment_ids"], strict=True):
        for segment in set(segments.tolist()) - {0}:
            here = segments == segment
            with torch.no_grad():
                logits = model(torch.tensor(tokens[here][None]).long()).logits[0]
            total += torch.nn.functional.cross_entropy(
                logits, torch.tensor(targets[here]).long(), reduction="sum"
            ).item()
            count += here.sum()
    return total / count


def test_begins_with_the_parameters_and_goes_on_without_the_source(tiny, imported, tmp_path, capsys):
    source, model = tmp_path / "source", imported[1]
    shutil.copytree(imported[0], source)
    tiny.init_from, tiny.steps, tiny.checkpoint_every = str(source), 4, 2
    tiny.model.remat = "full"
    whole = tmp_path / "whole"
    train(tiny, whole)
    assert f"begins with the parameters of {source}" in capsys.readouterr().out
    prepared = Workdir(whole).prepared
    batch = pipeline.train_pipeline(prepared, tiny.batch_size, tiny.seed).next()
    np.testing.assert_allclose(losses(whole)[1], reference_loss(model, batch), rtol=1e-4)

    rows = RowReader(prepared.sources[0].train, 32).read([0])
    assert rows[0, 0, 0] == 1 and 1 not in rows[0, 0, 1:]
    recorded = Workdir(whole).config
    assert (recorded.model.num_layers, recorded.model.norm, recorded.model.remat) == (3, "layernorm", "full")
    assert recorded.model_type == "gpt2"
    assert tokenizer.load(whole / "tokenizer.json").special == tokenizer.load(source / "tokenizer.json").special

    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "4")
    shutil.rmtree(source)
    train(tiny, killed)
    assert_same_run(recorded, whole, killed)


def test_from_a_run(tiny, tmp_path):
    """The first loss equals the evaluation loss of the source model on the same rows."""
    tiny.steps, tiny.checkpoint_every, tiny.eval_rows = 4, 4, 0
    train(tiny, tmp_path / "first")
    tuned = tiny.copy_and_resolve_references()
    tuned.init_from = str(tmp_path / "first")
    tuned.model.num_layers = 7  # ignored: it is set in the config file, and the architecture is the source's
    tuned.seed = 1
    train(tuned, tmp_path / "second")
    mesh, model, _ = restore.for_inference(Workdir(tmp_path / "first"))
    batch = pipeline.train_pipeline(Workdir(tmp_path / "second").prepared, tuned.batch_size, tuned.seed).next()
    with axes.use_mesh(mesh):
        evaluated = build.steps(tuned, None, models.objective(tuned))[1](model, build.put(mesh)(batch))
    np.testing.assert_allclose(losses(tmp_path / "second")[1], evaluated.total / evaluated.weight, rtol=1e-5)
    assert Workdir(tmp_path / "second").config.model.num_layers == 2


def test_layers_in_separate_stacks_are_read_onto_stages(tiny, tmp_path):
    """A stack of one layer can't be split over two stages; the stack of both layers that it becomes a part of can."""
    tiny.steps, tiny.checkpoint_every, tiny.optimizer.warmup_steps = 2, 2, 0
    tiny.train_only = (("layer/1/", True), (".*", False))
    train(tiny, tmp_path / "source")
    source = Workdir(tmp_path / "source")
    config = dataclasses.replace(source.architecture, cuts=())
    assert source.architecture.cuts == (1,)
    found = []
    for mesh in ({"data": 1}, {"stage": 2}):
        with axes.use_mesh(axes.make_mesh(mesh, jax.local_devices()[: mesh.get("stage", 1)])):
            model, _, new = restore.pretrained(source, config)
            found.append({name: np.asarray(array) for name, array in by_name(model).items()})
            assert not new
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])


@pytest.mark.parametrize("field", ["model.num_layers", "model.vocab_size", "data.tokenizer.kind"])
def test_refuses_what_contradicts(tiny, imported, tmp_path, field):
    tiny.init_from = str(imported[0])
    with pytest.raises(ConfigError, match=rf"contradicts these flags; leave them out:\n  config.{field}: "):
        train(tiny, tmp_path / "run", [field, "model.dtype", "optimizer.learning_rate"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (
            "--config.model.num_layers=7",
            "contradicts these flags; leave them out:\n  config.model.num_layers: 3 there, 7 now",
        ),
        ("--config.data.seq_len=64", "config.data.seq_len 64 is longer than config.model.max_length 48"),
        ("--config.data.dir=elsewhere", "leave --config.data.dir out"),
    ],
)
def test_launch_prepare_refuses_what_training_would(imported, tmp_path, flag, words):
    command = [sys.executable, "-m", "launch.prepare", "--config=configs/sft.py", f"--config.init_from={imported[0]}"]
    command += ["--config.data.path=absent.json", f"--data_dir={tmp_path / 'data'}", "--config.mesh.fsdp=64", flag]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and words in done.stderr
    assert not (tmp_path / "data").exists()


def test_mistakes(tiny, imported, tmp_path):
    def refused(words):
        with pytest.raises(ConfigError, match=words):
            train(tiny, tmp_path / "run")

    tiny.init_from = str(tmp_path / "nothing")
    refused(r"nothing holds no run \(no config.json\)")
    tiny.init_from = str(imported[0])
    tiny.data.seq_len = 64
    refused("seq_len 64 is longer than config.model.max_length 48")
    assert not (tmp_path / "run").exists()
    tiny.data.seq_len, tiny.steps = 32, 4
    train(tiny, tmp_path / "run")
    tiny.init_from = "elsewhere"
    refused(r"run holds a run with config.init_from '.*run', not 'elsewhere'")
