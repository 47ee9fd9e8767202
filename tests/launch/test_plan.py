"""Plans without an accelerator: what fits, what does not, and what is printed without a compiler."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import classify, dpo, pretrain_decoder, shakespeare_char
from data.batch import DTYPES
from data.tokens import tokenizer as tokenizers
from launch.plans import candidates, child
from launch.program.checking import ConfigError
from launch.run import models
from model import axes, count
from model.config import ModelConfig
from train.planning import page, targets
from train.planning.targets import GIB

ROOT = Path(__file__).resolve().parents[2]
libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install --no-deps -r launch/plans/requirements.txt",
)


cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="3 GB of compilers: pip install --no-deps -r launch/plans/requirements.txt",
)


def run(*args, **env):
    command = [sys.executable, "-m", "launch.plan", "--config=configs/pretrain_decoder.py:tiny", *args]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)


@pytest.fixture
def config():
    config = pretrain_decoder.get_config("tiny")
    config.model.vocab_size, config.model.dtype = 1024, "float32"
    config.batch_size, config.data.seq_len = 8, 128
    return config


def test_a_plan_for_cpu_devices(config):
    """Collectives and memory of FSDP over 4 devices are as computed by hand."""
    target = targets.parse("cpu:4")
    config.model.attention, config.model.remat = "xla", "full"
    found = candidates.plan(config, target, {"fsdp": 4})
    model = ModelConfig(**config.model.to_dict())
    assert found["parameters"] == found["trained"] == count.num_params(model)
    assert found["model_flops"] == pytest.approx(8 * 128 * count.flops_per_token(model, 128))
    # All parameters except norms are sharded four ways, and Adam has two moments per parameter.
    norms = (2 * model.num_layers + 1) * model.embed_dim
    assert found["memory"]["parameters"] == 4 * ((found["parameters"] - norms) / 4 + norms)
    assert found["memory"]["optimizer"] == pytest.approx(2 * found["memory"]["parameters"], abs=64)
    assert found["memory"]["arguments"] < found["memory"]["peak"] < 200 * 2**20
    assert found["collectives"]["all-gather"] >= 7  # one for each weight of a layer
    assert not [note for note in found["notes"] if "Involuntary" in note]
    assert found["attention"] == []
    text = page.page(found, target, "tiny", "full")
    assert "  mesh          fsdp=4\n" in text and "MFU" not in text  # a CPU has no published peak


@pytest.mark.parametrize("argument", ["tiny", "lora"])
def test_a_reference_is_planned(argument):
    """It is as large as the model that trains; that of an adapter is its base. No workdir is needed."""
    config = dpo.get_config(argument)
    config.model.update(num_layers=1, vocab_size=64, attention="xla")
    plan = candidates.plan(config, targets.parse("cpu:4"), {"fsdp": 4})
    assert plan["memory"]["companions"] == (0 if argument == "lora" else plan["memory"]["parameters"])
    if argument == "tiny":  # the reference's forward pass counts
        model, tokens = ModelConfig(**config.model.to_dict()), config.batch_size * config.data.seq_len
        passes = [count.flops_per_token(model, config.data.seq_len, training=training) for training in (True, False)]
        assert plan["model_flops"] == pytest.approx(tokens * sum(passes))
        config.objective.precompute = True  # the step reads its log-probabilities, and has no reference
        plan = candidates.plan(config, targets.parse("cpu:4"), {"fsdp": 4})
        assert plan["memory"]["companions"] == 0 and plan["model_flops"] == pytest.approx(tokens * passes[0])


def test_the_size_of_a_tokenizer_that_is_not_trained_yet():
    """A byte tokenizer has all bytes, the end of a text, and the special tokens that the config asks for."""
    config = shakespeare_char.get_config()
    assert config.model.vocab_size == 0
    with pytest.raises(ConfigError, match=r"a tokenizer of kind char depends on the data; set config\.model"):
        models.planned_tokenizer_size(config)
    config.data.tokenizer.update(kind="byte", sentinels=3, mask=True)
    made = tokenizers.train(["a"], "byte", specials=tokenizers.specials(True, 3))
    assert models.planned_tokenizer_size(config) == made.vocab_size
    config.model.vocab_size = 512
    assert models.planned_tokenizer_size(config) == 0


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {}),
        ({"kind": "number"}, {"targets": np.float32}),
        ({"pair": "other"}, {"token_types": np.int32}),
    ],
)
def test_a_batch_is_planned_as_its_data_would_give_it(changes, more):
    config = classify.get_config()
    config.data.labels.update(changes)
    planned = child.batch(config, SimpleNamespace(architecture="decoder"), axes.make_mesh())
    assert {name: array.dtype for name, array in planned.items()} == DTYPES | more
    assert {array.shape for array in planned.values()} == {(config.batch_size, config.data.seq_len)}


def test_a_batch_that_cannot_be_sharded_is_refused(config):
    target = targets.parse("cpu:3")
    with pytest.raises(ConfigError, match="batch_size 8 cannot be divided"):
        candidates.plan(config, target, {"fsdp": 3})


@pytest.mark.parametrize(
    "args, words",
    [
        (("--target=v9:4",), "unknown target 'v9:4'"),
        (("--target=cpu:2", "--mesh=fsdp"), "not of the form fsdp=16,tensor=4"),
        (("--target=cpu:2", "--mesh=fdsp=2"), "unknown axis 'fdsp'"),
        (("--target=cpu:2", "--search"), "no rates are published"),
        (("--target=cpu:2", "--config.init_from=/nowhere"), "/nowhere holds no run"),
    ],
)
def test_mistakes_of_flags(args, words):
    done = run(*args)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_without_the_compiler_a_plan_has_the_analytic_part(tmp_path):
    """Without libtpu, shapes and dtypes still give the FLOPs and the memory of the state."""
    (tmp_path / "libtpu.py").write_text("raise ImportError('not here')")
    done = run(
        "--target=v5e:2x2", "--mesh=fsdp=4", PYTHONPATH=str(tmp_path), TPU_LIBRARY_PATH=str(tmp_path / "none.so")
    )
    assert done.returncode == 0, done.stderr
    assert "Missing: libtpu is not installed" in done.stdout and "launch/plans/requirements.txt" in done.stdout
    assert "FLOPs per step" in done.stdout and "optimizer" in done.stdout and "activations" not in done.stdout


@libtpu
def test_a_plan_for_v5e(config):
    """Peak memory and collectives are as expected, and there is no involuntary rematerialization."""
    config.model.dtype, config.model.remat = "bfloat16", "full"
    found = candidates.plan(config, targets.parse("v5e:2x2"), {"fsdp": 4})
    assert found["memory"]["limit"] == 15.75 * GIB
    assert found["memory"]["arguments"] < found["memory"]["peak"] < 64 * 2**20
    # The 7 weights of a layer are gathered in the forward pass and in the backward pass; the tables once or twice.
    assert 14 <= found["collectives"]["all-gather"] <= 18
    assert found["attention"] == ["splash"]
    assert found["collectives"]["all-reduce"] <= 20 and "all-to-all" not in found["collectives"]
    assert not [note for note in found["notes"] if "Involuntary" in note]
    assert 0 < page.mfu(found, targets.parse("v5e:2x2")) < 1


@cuda
def test_a_plan_for_h100(config):
    config.model.dtype, config.model.remat = "bfloat16", "full"
    found = candidates.plan(config, targets.parse("h100:8"), {"fsdp": 8})
    assert found["missing"] == "" and found["attention"] == ["cuDNN"]
    assert found["memory"]["arguments"] < found["memory"]["peak"] < 64 * 2**20
    assert {"all-gather", "reduce-scatter"} <= found["collectives"].keys() and "all-to-all" not in found["collectives"]
    assert not [note for note in found["notes"] if "Involuntary" in note]


@libtpu
def test_a_program_that_does_not_fit(config):
    """Every layer keeps its attention scores: 8 layers of 16 x 8 x 2048 x 2048 values with at least 2 bytes each."""
    config.model.update(num_layers=8, embed_dim=128, mlp_dim=128, num_heads=8, num_kv_heads=8, head_dim=32)
    config.model.update(max_length=2048, attention="xla", dtype="bfloat16", remat="none")
    config.batch_size, config.data.seq_len = 16, 2048
    found = candidates.plan(config, targets.parse("v5e:1x1"), {})
    assert found["out_of_memory"]["needed"] > max(8 * 16 * 8 * 2048**2 * 2, 15.75 * GIB)
    assert found["memory"]["limit"] == 15.75 * GIB and "peak" not in found["memory"]


@pytest.mark.parametrize("fits", ["dots", "full", ""])
def test_out_of_memory_is_an_answer(fits, config, monkeypatch):
    """Fake plans fit only with remat=`fits`; "" means that none fits."""
    target = targets.parse("v5e:2x2")

    def pretended(config, target, mesh):
        memory = {"limit": 16 * GIB, "parameters": GIB, "optimizer": 2 * GIB, "arguments": 3 * GIB, "peak": 11.2 * GIB}
        found = {"mesh": {"fsdp": 4}, "parameters": 1000, "trained": 1000, "tokens": 1000, "model_flops": 1e9}
        found |= {"memory": memory, "times": dict(compute=1.0, memory=0.0, hidden=0.0, waited=0.0, step=1.0)}
        if config.model.remat != fits:
            found["out_of_memory"] = {"needed": 19.3 * GIB}
            del memory["arguments"], memory["peak"]
        return found | {"flops": {"executed": 2e9, "a_chip": 1e9}, "missing": "", "notes": []}

    monkeypatch.setattr(candidates, "plan", pretended)
    config.model.remat = "none"
    text = "\n".join(candidates.pages(config, target, {"fsdp": 4}, "tiny", tokens=1e9))
    assert text.count("out of memory: needs 19.3 of 16.00 GiB") == 1
    assert ("remat=dots: needs 19.3 of 16.00 GiB" in text) == (fits != "dots")
    if fits:
        assert f"needs 19.3 of 16.00 GiB; remat={fits} fits at 11.2. With it:" in text
        assert "Training on 1.0 billion tokens" in text
    else:
        assert text.endswith("or a smaller config.batch_size.") and "Training on" not in text


def test_search_lists_the_fastest_plan_that_fits_first(config, monkeypatch):
    """In these fake plans tensor parallelism is slow, and only meshes with FSDP over 2 or 4 and remat=full fit."""

    def pretended(config, target, mesh):
        if mesh["tensor"] == 4:
            raise ConfigError("model.num_kv_heads 2 cannot be split over mesh axis tensor=4")
        found = {"tokens": 1000, "model_flops": 1e9, "memory": {"limit": 16 * GIB, "peak": GIB}}
        found["times"] = {"step": float(mesh["tensor"] * mesh["data"])}
        if mesh["fsdp"] < 2 or config.model.remat != "full":
            found["out_of_memory"] = {"needed": 20 * GIB}
        return found

    monkeypatch.setattr(candidates, "plan", pretended)
    target = targets.parse("v5e:2x2")
    rows = candidates.search(config, target, {}, tries=100)
    fitting = [(mesh, remat) for mesh, remat, found in rows if "times" in found and "out_of_memory" not in found]
    assert fitting == [("fsdp=4", "full"), ("data=2,fsdp=2", "full"), ("fsdp=2,tensor=2", "full")]
    text = page.table(rows, target)
    assert text.count("needs 20.0 of 16.00 GiB") == len(rows) - 3 - 1 and "cannot be split over mesh axis" in text
    assert len(candidates.search(config, target, {"data": 1, "tensor": 1}, tries=2)) == 2


def test_search_varies_the_axes_of_the_model_and_those_left_open(config, monkeypatch):
    target, seen = targets.parse("v5e:2x2"), []

    def pretended(config, target, mesh):
        seen.append(mesh)
        return {"memory": {"limit": GIB}, "times": {"step": 1.0}}

    monkeypatch.setattr(candidates, "plan", pretended)
    candidates.search(config, target, {"data": 1, "tensor": 1, "stage": -1}, tries=100)
    assert seen == [dict(data=1, tensor=1, fsdp=4 // stage, stage=stage) for stage in (1, 2, 4)]
    seen.clear()
    config.model.experts = dict(count=4, per_token=2, mlp_dim=16)
    candidates.search(config, target, {"data": 1, "tensor": 1}, tries=100)
    assert seen == [dict(data=1, tensor=1, fsdp=4 // expert, expert=expert) for expert in (1, 2, 4)]
