"""Tests workdirs of adapters against peft and transformers: import, export, merging, and errors."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import peft
import pytest
from safetensors.numpy import load_file

from launch import convert
from launch.conversion import adapters, compressing
from launch.program.checking import ConfigError
from launch.run import adapter_bank, restore, workdirs
from launch.run.workdirs import Workdir
from model import axes
from model.adapt.lora import Lora
from model.adapt.tuning import Tuning
from model.compress.quantize import Settings
from model.decode.generate import generate
from tests.launch.conversion.peft_adapters import LENGTH, PROMPT, TARGETS, opened, ours, theirs
from train.checkpoints.checkpoint import CheckpointError


@pytest.mark.parametrize("name", TARGETS)
def test_from_peft_and_back(name, made, tmp_path):
    root, models = made
    np.testing.assert_array_equal(ours(root / name), theirs(models[name]))
    assert (theirs(models[name]) != theirs(models["base"])).any()
    adapters.to_peft(Workdir(root / name), tmp_path / "out")
    old, new = (load_file(path / "adapter_model.safetensors") for path in (root / f"peft {name}", tmp_path / "out"))
    assert old.keys() == new.keys()
    for tensor in old:
        np.testing.assert_array_equal(old[tensor], new[tensor])
    # This loads the base that the adapter names.
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(theirs(found), theirs(models[name]))


def test_merged(made, tmp_path):
    """Exported as a folder, also over a quantized base, and as a workdir with a plain model."""
    root, models = made
    wanted = copy.deepcopy(models["wide"]).merge_and_unload().state_dict()
    convert.export(root / "wide", tmp_path / "hf", merge=True)
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for tensor in wanted:
        np.testing.assert_allclose(found[tensor], wanted[tensor], atol=1e-5)
    shutil.copytree(root / "wide", tmp_path / "quantized")
    record = json.loads((root / "wide" / "config.json").read_text())
    record["model"]["param_dtype"], record["adapt"]["base"] = "bfloat16", "nf4"
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(record))
    convert.export(tmp_path / "quantized", tmp_path / "original", merge=True)
    for tensor, array in load_file(tmp_path / "original" / "model.safetensors").items():
        np.testing.assert_array_equal(array, found[tensor])
    adapters.merge(Workdir(root / "wide"), tmp_path / "plain")
    np.testing.assert_array_equal(ours(tmp_path / "plain"), theirs(models["wide"]))
    convert.export(tmp_path / "plain", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    for tensor in found:
        np.testing.assert_array_equal(found[tensor], again[tensor])


def test_over_a_base_that_is_stored_quantized(made, tmp_path):
    """An imported adapter works alone, beside another one and exported; merged, the model gives the same logits."""
    root, _ = made
    compressing.compress(Workdir(root / "base"), tmp_path / "base", Settings("nf4"))
    for name in TARGETS:
        adapters.from_peft(root / f"peft {name}", Workdir(tmp_path / "base"), tmp_path / name)
    assert Workdir(tmp_path / "wide").record["adapt"]["base"] == "nf4"
    alone = [ours(tmp_path / name) for name in TARGETS]
    mesh, model, _ = adapter_bank.several(*opened(tmp_path / "base", *(tmp_path / name for name in TARGETS)))
    with axes.use_mesh(mesh):
        together = generate(model, [PROMPT] * 2, jax.random.key(0), max_new_tokens=LENGTH, adapters=[0, 1]).tokens
    np.testing.assert_array_equal(together, alone)
    assert (logits(tmp_path / "wide") != logits(root / "wide")).any()
    adapters.to_peft(Workdir(tmp_path / "wide"), tmp_path / "out")
    old, new = (load_file(path / "adapter_model.safetensors") for path in (root / "peft wide", tmp_path / "out"))
    for tensor in old:
        np.testing.assert_array_equal(old[tensor], new[tensor])
    adapters.merge(Workdir(tmp_path / "wide"), tmp_path / "merged")
    np.testing.assert_allclose(logits(tmp_path / "merged"), logits(tmp_path / "wide"), atol=1e-4)


def test_over_a_base_that_is_quantized_on_the_fly(made, tmp_path):
    """Several adapters of QLoRA get the base that they were trained over; with one over floats they are refused."""
    root, _ = made
    for name in TARGETS:
        shutil.copytree(root / name, tmp_path / name)
        record = json.loads((tmp_path / name / "config.json").read_text())
        record["adapt"]["base"] = "nf4"
        (tmp_path / name / "config.json").write_text(json.dumps(record))
    alone = [ours(tmp_path / name) for name in TARGETS]
    assert any((one != ours(root / name)).any() for one, name in zip(alone, TARGETS, strict=True))
    mesh, model, _ = adapter_bank.several(*opened(root / "base", *(tmp_path / name for name in TARGETS)))
    with axes.use_mesh(mesh):
        together = generate(model, [PROMPT] * 2, jax.random.key(0), max_new_tokens=LENGTH, adapters=[0, 1]).tokens
    np.testing.assert_array_equal(together, alone)
    first, second = TARGETS
    with pytest.raises(ConfigError, match=rf"different forms of the base: {tmp_path / first} over nf4, .* over float"):
        adapter_bank.several(*opened(root / "base", tmp_path / first, root / second))


def logits(workdir):
    mesh, model, _ = restore.for_inference(Workdir(workdir))
    with axes.use_mesh(mesh):
        return np.asarray(jax.jit(lambda model: model.logits(np.array([PROMPT])))(model))


def test_merged_into_the_weights_that_it_was_trained_over(made, tmp_path, capsys):
    """The merged model then gives the adapter's logits; merged into the original weights, it gives others."""
    root, _ = made
    run = tmp_path / "run"
    shutil.copytree(root / "wide", run)
    record = json.loads((run / "config.json").read_text())
    record["model"]["param_dtype"], record["adapt"]["base"] = "bfloat16", "nf4"
    (run / "config.json").write_text(json.dumps(record))
    adapters.merge(Workdir(run), tmp_path / "quantized", into="quantized")
    assert "warning" not in capsys.readouterr().err
    adapters.merge(Workdir(run), tmp_path / "original")
    said = capsys.readouterr().err
    assert f"warning: the adapter in {run} was trained over weights in nf4; merged into the original ones" in said
    assert "--merge_into=quantized" in said
    assert Workdir(tmp_path / "quantized").architecture.param_dtype == "float32"
    trained_over, merged, other = (logits(path) for path in (run, tmp_path / "quantized", tmp_path / "original"))
    difference = np.abs(trained_over - other).max()
    assert np.abs(trained_over - merged).max() < 0.01 * difference
    adapters.merge(Workdir(root / "wide"), tmp_path / "plain")
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(
        ConfigError,
        match=r"--merge_into=quantized is for adapters that were trained over quantized weights; the one in .*wide was",
    ):
        adapters.merge(Workdir(root / "wide"), tmp_path / "none", into="quantized")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("meta-llama/Llama-3.2-1B", "/models/Llama-3.2-1B", True),
        ("meta-llama/Llama-3.2-1B", "/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20", True),
        ("/old/place/Base/", "/new/place/base", True),
        ("C:\\models\\base", "/new/place/base", True),
        ("meta-llama/Llama-3.2-1B", "/models/Llama-3.2-1B-Instruct", False),
        ("meta-llama/Llama-3.2-1B", "/hub/models--meta-llama--Llama-3.2-3B/snapshots/4e20", False),
    ],
)
def test_names_of_one_model(one, other, same):
    assert (adapters._model_name(one) == adapters._model_name(other)) == same


def test_a_base_of_another_name_is_a_warning(made, tmp_path, capsys):
    root, _ = made
    shutil.copytree(root / "peft narrow", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    given = json.loads(path.read_text())
    for name, warned in (("org/other", True), (None, False), (str(root / "hf"), False)):
        path.write_text(json.dumps(given | {"base_model_name_or_path": name}))
        adapters.from_peft(tmp_path / "peft", Workdir(root / "base"), tmp_path / str(name).replace("/", "_"))
        said = capsys.readouterr().err
        assert ("warning" in said) == warned
        assert not warned or f"was trained over {name}, but {root / 'base'} was imported from {root / 'hf'}" in said


def test_the_commands(made, tmp_path):
    root, _ = made
    run = lambda *words: subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True)
    several = [f"--adapter={root / name}" for name in TARGETS]
    more = ("--prompt=some", "--prompt=text", "--max_new_tokens=3", "--temperature=0")
    done = run("launch.generate", f"--workdir={root / 'base'}", *several, *more)
    heads = [line for line in done.stdout.splitlines() if line.startswith("---")]
    names = [*several, *several]
    assert heads == [f"--- {i + 1} of 4: {name.removeprefix('--adapter=')} ---" for i, name in enumerate(names)], done
    done = run("launch.generate", f"--workdir={root / 'base'}", *more)
    heads = [line for line in done.stdout.splitlines() if line.startswith("---")]
    assert heads == ["--- 1 of 2 ---", "--- 2 of 2 ---"], done
    done = run("launch.convert", f"--workdir={tmp_path / 'new'}", f"--from_peft={root / 'peft wide'}")
    assert "--from_peft needs it: the workdir of the model" in done.stderr


def test_an_adapter_over_an_adapter_reads_on_every_mesh(made, tmp_path):
    """The content hash is of the stored arrays, because merged weights differ in their last bits between meshes."""
    root, _ = made
    config, words = Workdir(root / "wide").architecture, Workdir(root / "wide").tokenizer
    tuning = Tuning(Lora(rank=2))
    with axes.use_mesh(axes.make_mesh({"fsdp": 8}, jax.local_devices())):
        model, content, _ = restore.pretrained(Workdir(root / "wide"), config)
        record = {"model": dataclasses.asdict(config), "init_from": str(root / "wide"), "seed": 0}
        record |= {"adapt": {"method": "lora"} | dataclasses.asdict(tuning.method)}
        workdirs.create(tmp_path / "second", record, tuning.apply(model, jax.random.key(0)), words, base=content)
    np.testing.assert_array_equal(ours(tmp_path / "second"), ours(root / "wide"))
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices())):
        assert restore.pretrained(Workdir(root / "narrow"), Workdir(root / "narrow").architecture)[1] != content


def test_a_chain_is_merged_in_the_dtype_at_its_bottom(made, tmp_path):
    """Not in the dtype of a run over quantized weights, which may hold its other parameters in fewer bits."""
    root, _ = made
    shutil.copytree(root / "wide", tmp_path / "wide")
    record = json.loads((root / "wide" / "config.json").read_text())
    record["model"]["param_dtype"] = "bfloat16"
    (tmp_path / "wide" / "config.json").write_text(json.dumps(record))
    adapters.merge(Workdir(tmp_path / "wide"), tmp_path / "once")
    assert Workdir(tmp_path / "once").architecture.param_dtype == "float32"
    shutil.copytree(tmp_path / "wide", tmp_path / "second")
    (tmp_path / "second" / "config.json").write_text(json.dumps(record | {"init_from": str(tmp_path / "wide")}))
    assert restore.stored_dtype(Workdir(tmp_path / "second")) == "float32"


def test_what_is_refused(made, tmp_path):
    root, _ = made
    with pytest.raises(ConfigError, match=r"over a base \(lora\), but a .* --merge puts"):
        convert.export(root / "wide", tmp_path / "out")
    with pytest.raises(ConfigError, match="holds no adapter"):
        adapters.to_peft(Workdir(root / "base"), tmp_path / "out")
    changed = tmp_path / "base" / "config.json"  # like a GPT-2 whose queries were divided by the index of their layer
    changed.parent.mkdir()
    record = json.loads((root / "base" / "config.json").read_text())
    changed.write_text(json.dumps(record | {"imported_changed": True}))
    with pytest.raises(ConfigError, match=r"changed when they were imported \(scale_attn_by_inverse_layer_idx\)"):
        adapters.from_peft(root / "peft narrow", Workdir(changed.parent), tmp_path / "out")
    with pytest.raises(ConfigError, match="holds a run already"):
        adapters.from_peft(root / "peft wide", Workdir(root / "base"), root / "wide")
    (tmp_path / "left" / "checkpoints" / "0").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds checkpoints but no config\.json, so it was not finished; delete it"):
        adapters.merge(Workdir(root / "wide"), tmp_path / "left")
    with pytest.raises(CheckpointError, match="holds no step '7'; there are: 0"):
        adapter_bank.several(*opened(root / "base", root / "narrow"), step="7")
    with pytest.raises(CheckpointError, match="was trained over a base with the content hash"):
        adapters.merge(Workdir(root / "wide"), tmp_path / "other")
        adapter_bank.several(*opened(tmp_path / "other", root / "narrow"))
