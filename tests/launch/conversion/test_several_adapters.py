"""Tests several adapters in one batch against peft and transformers; one is on a single layer, which cuts the stack."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from launch.conversion import adapters
from launch.run import adapter_bank, models, restore, workdirs
from launch.run.defaults import completed
from launch.run.workdirs import Workdir
from model import axes
from model.adapt.lora import Lora
from model.adapt.tuning import Tuning
from model.decode.generate import generate
from model.weights import replaced, trained
from tests.launch.conversion.peft_adapters import LENGTH, PROMPT, opened, ours, theirs


@pytest.fixture
def early(made):
    """A workdir whose adapter is only on the first layer, so that its stack is cut in two."""
    root, _ = made
    if not (root / "early").exists():
        config, words = Workdir(root / "base").architecture, Workdir(root / "base").tokenizer
        tuning = Tuning(Lora(targets=(("layer/0/.*query", True), (".*", False))))
        record = {"model": dataclasses.asdict(config), "init_from": str(root / "base"), "seed": 0}
        record |= {"adapt": {"method": "lora"} | dataclasses.asdict(tuning.method)}
        config = models.model_config(ConfigDict(completed(record)))
        assert config.cuts == (1,)
        with axes.use_mesh(axes.make_mesh()):
            model, content, _ = restore.pretrained(Workdir(root / "base"), config)
            model = tuning.apply(model, jax.random.key(0))
            noise = lambda w: w.replace(w[...] + jax.random.normal(jax.random.key(1), w.shape))
            model = replaced(model, {name: noise(w) for name, w in trained(model).items()})
            workdirs.create(root / "early", record, model, words, base=content)
    return root / "early"


def test_several_in_one_batch(made, early):
    root, models = made
    mesh, model, _ = adapter_bank.several(*opened(root / "base", root / "narrow", early, root / "wide"))
    with axes.use_mesh(mesh):
        found = generate(model, [PROMPT] * 4, jax.random.key(0), max_new_tokens=LENGTH, adapters=[2, 1, 0, -1]).tokens
    wanted = [theirs(models["wide"]), ours(early), theirs(models["narrow"]), theirs(models["base"])]
    assert len({tuple(row) for row in wanted}) == 4
    np.testing.assert_array_equal(found, wanted)


def test_in_another_precision(made, tmp_path):
    """--dtype for one adapter, several in one batch, and over a quantized base, whose parameters keep their dtype."""
    root, _ = made
    shutil.copytree(root / "wide", tmp_path / "quantized")
    record = json.loads((root / "wide" / "config.json").read_text())
    record["adapt"]["base"] = "int8"
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(record))
    tables = {}
    for name, given in {
        "alone": restore.for_inference(Workdir(root / "wide"), dtype="bfloat16"),
        "several": adapter_bank.several(*opened(root / "base", root / "narrow", root / "wide"), dtype="bfloat16"),
        "quantized": restore.for_inference(Workdir(tmp_path / "quantized"), dtype="bfloat16"),
    }.items():
        mesh, model, _ = given
        assert model.config.dtype == "bfloat16"
        tables[name] = model.inputs.tokens.table[...].dtype.name
        with axes.use_mesh(mesh):
            rows = {"adapters": [1]} if name == "several" else {}
            assert generate(model, [PROMPT], jax.random.key(0), max_new_tokens=2, **rows).lengths == [2]
    assert tables == {"alone": "bfloat16", "several": "bfloat16", "quantized": "float32"}


def test_an_adapter_of_one_layer(early, tmp_path):
    adapters.to_peft(Workdir(early), tmp_path / "out")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
