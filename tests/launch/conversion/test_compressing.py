"""Tests checkpoints of quantized weights: they hold what quantizing on the fly gives."""

import importlib
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data.tokens import tokenizer
from launch import convert
from launch.answers.classifier import Classifier
from launch.conversion import adapters, compressing
from launch.program.checking import ConfigError
from launch.run import init_from, models, restore, workdirs
from launch.run.workdirs import Workdir
from launch.train import train
from model import architectures, axes
from model.compress.quantize import Settings
from model.compress.quantized import QuantizedWeight
from model.weights import by_name
from tests.launch.conftest import shrink
from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.record import metrics

FORMS = {"nf4": Settings("nf4"), "nf4 single": Settings("nf4", double=False), "int8": Settings("int8")}
TOKENS = np.arange(9)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory, data_dir, corpus):
    """A small decoder with random weights."""
    config = shrink(importlib.import_module("configs.pretrain_decoder").get_config(), data_dir, corpus)
    workdir, words = tmp_path_factory.mktemp("compressing") / "base", tokenizer.train((), "byte")
    model = architectures.make(models.model_config(config, words.vocab_size), nnx.Rngs(0))
    workdirs.create(workdir, config.to_dict(), model, words)
    return workdir


@pytest.fixture(scope="module")
def compressed(base):
    """Returns a function (form, dtype) -> the compressed workdir."""

    def make(form, dtype=None):
        out = base.parent / f"{form} {dtype}"
        if not out.exists():
            compressing.compress(Workdir(base), out, FORMS[form], dtype=dtype)
        return out

    return make


@pytest.fixture
def tuned(base, data_dir, tmp_path):
    """Returns a function (config, source, fields) -> a config over that workdir, with 40 questions."""
    path = tmp_path / "colours.json"
    path.write_text(json.dumps([{"instruction": f"{i} fox?", "output": ("red", "blue")[i % 2]} for i in range(40)]))

    def make(name, source, **fields):
        config = shrink(importlib.import_module(f"configs.{name}").get_config(), data_dir, path)
        config.init_from, config.steps, config.eval_every, config.checkpoint_every = str(source), 2, 2, 2
        config.optimizer.warmup_steps = 1
        config.data.update(path=str(path), sources=(), split="document", seq_len=64)
        config.update_from_flattened_dict(fields)
        return config

    return make


def on_the_fly(base, form):
    """Returns the float model, quantized as it is loaded."""
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        return restore.pretrained(Workdir(base), Workdir(base).architecture, quantization=FORMS[form])[0]


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, name)


def losses(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k.endswith("loss") or k == "step"} for row in rows if "event" not in row]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_is_what_is_quantized_on_the_fly(form, base, compressed):
    run = Workdir(compressed(form))
    assert run.compression.fields() == FORMS[form].fields() == run.record["compress"]
    mesh, model, _ = restore.for_inference(run)
    wanted = on_the_fly(base, form)
    same(by_name(model), by_name(wanted))
    with axes.use_mesh(mesh):
        np.testing.assert_array_equal(model.logits(TOKENS), wanted.logits(TOKENS))
    split = axes.make_mesh({"fsdp": 2, "tensor": 2}, jax.local_devices()[:4])
    _, model, _ = restore.for_inference(run, split)
    same(by_name(model), by_name(wanted))
    spread = [name for name, array in by_name(model).items() if any(array.sharding.spec)]
    assert any(name.endswith("/codes") for name in spread)


def test_no_weight_is_ever_a_float_array(compressed, monkeypatch):
    """While a model is loaded, for inference or as a base, memory holds at most the model and one more array."""
    run, read, seen = Workdir(compressed("nf4")), Checkpoints.restore_arrays, []
    before = {id(array) for array in jax.live_arrays()}

    def watched(self, *args):
        for name, array in read(self, *args):
            seen.append([(a.shape, a.dtype, a.nbytes) for a in jax.live_arrays() if id(a) not in before])
            yield name, array
            del array

    monkeypatch.setattr(Checkpoints, "restore_arrays", watched)
    _, model, _ = restore.for_inference(run)
    leaves = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    shapes = {leaf.shape for leaf in leaves if isinstance(leaf, QuantizedWeight)}
    sizes = [array.nbytes for array in by_name(model).values()]
    assert len(seen) == len(sizes) and len(shapes) > 3
    for there in seen:
        assert sum(size for _, _, size in there) <= sum(sizes) + max(sizes)
        assert not [shape for shape, dtype, _ in there if shape in shapes and dtype.itemsize > 1]
    wanted = by_name(model)
    seen.clear()
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        found, *_ = restore.pretrained(run, run.architecture, quantization=run.compression)
    same(by_name(found), wanted)
    for there in seen:
        assert not [shape for shape, dtype, _ in there if shape in shapes and dtype.itemsize > 1]


def test_the_command_and_the_programs(base, tmp_path, capsys):
    def command(name, *words):
        return subprocess.run([sys.executable, "-m", f"launch.{name}", *words], capture_output=True, text=True)

    out = tmp_path / "out"
    made = command("compress", f"--workdir={base}", "--method=nf4", f"--out={out}")
    assert made.returncode == 0, made.stderr
    model = on_the_fly(base, "nf4")
    before = sum(array.nbytes for array in by_name(restore.for_inference(Workdir(base))[1]).values())
    after = sum(array.nbytes for array in by_name(model).values())
    assert f"{before:,} bytes before, {after:,} after" in made.stdout and after < before
    said = command("generate", f"--workdir={out}", "--prompt=fox", "--temperature=0", "--max_new_tokens=4")
    assert said.returncode == 0 and said.stdout.startswith("fox"), said.stderr
    again = command("compress", f"--workdir={out}", "--method=int8", f"--out={tmp_path / 'more'}")
    assert again.returncode == 1 and "are in nf4 already; use the float model" in again.stderr
    wrong = command(
        "compress", f"--workdir={base}", "--method=int8", "--nodouble_quantization", f"--out={tmp_path / 'x'}"
    )
    assert wrong.returncode == 1 and "double_quantization is not a field of int8" in wrong.stderr
    assert not (tmp_path / "more").exists() and not (tmp_path / "x").exists()


def test_an_export_has_the_weights_as_floats(compressed, base, tmp_path, capsys):
    convert.export(compressed("int8"), tmp_path / "hf")
    assert "are in int8; they become float32" in capsys.readouterr().out
    convert.import_folder(tmp_path / "hf", tmp_path / "again")
    _, model, _ = restore.for_inference(Workdir(compressed("int8")))
    again = by_name(restore.for_inference(Workdir(tmp_path / "again"))[1])
    for name, weight in {"query": model.stack.segments[0][0].attention.query}.items():
        np.testing.assert_array_equal(again[f"stack/segments/0/0/attention/{name}"], weight.gathered(np.float32))


def test_a_classifier(base, tmp_path):
    """Heads stay floats; the scores equal those of the model that is quantized on the fly."""
    fields = json.loads((base / "config.json").read_text())
    fields["model"] |= {"head": "sequence", "num_labels": 1}
    words, labels = tokenizer.train((), "byte"), {"kind": "number", "read": "last"}
    model = architectures.make(models.model_config(ConfigDict(fields), words.vocab_size, 1), nnx.Rngs(1))
    workdirs.create(tmp_path / "run", fields, model, words, labels)
    compressing.compress(Workdir(tmp_path / "run"), tmp_path / "out", FORMS["int8"])
    found, wanted = Classifier(Workdir(tmp_path / "out")), Classifier(Workdir(tmp_path / "run"))
    with axes.use_mesh(wanted._mesh):
        run = Workdir(tmp_path / "run")
        wanted._model = restore.pretrained(run, run.architecture, labels=labels, quantization=FORMS["int8"])[0]
    texts = [("fox", None), ("dog and fox", None)]
    np.testing.assert_array_equal(list(found(texts)), list(wanted(texts)))


def test_adapters_train_over_it_as_over_the_model_quantized_on_the_fly(base, compressed, tuned, tmp_path, capsys):
    stored = compressed("nf4", "bfloat16")
    train(tuned("qlora", base), tmp_path / "fly")
    train(tuned("qlora", stored), tmp_path / "stored")
    train(tuned("qlora", stored, **{"adapt.base": "float"}), tmp_path / "as it is")
    assert losses(tmp_path / "fly") == losses(tmp_path / "stored") == losses(tmp_path / "as it is")
    assert len(losses(tmp_path / "fly")) >= 3
    assert Workdir(tmp_path / "as it is").record["adapt"]["base"] == "nf4"
    assert train(tuned("qlora", stored, **{"adapt.base": "float"}), tmp_path / "as it is")  # is done
    arrays = [by_name(restore.for_inference(Workdir(tmp_path / name))[1]) for name in ("fly", "stored", "as it is")]
    same(arrays[1], arrays[0])
    same(arrays[2], arrays[0])
    # There are no original weights to merge into.
    adapters.merge(Workdir(tmp_path / "fly"), tmp_path / "wanted", into="quantized")
    capsys.readouterr()
    adapters.merge(Workdir(tmp_path / "stored"), tmp_path / "merged")
    assert "warning" not in capsys.readouterr().err
    found, wanted = (
        by_name(restore.for_inference(Workdir(tmp_path / name), dtype="float32")[1]) for name in ("merged", "wanted")
    )
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], np.float32(array.astype(jnp.bfloat16)), name)  # the stored dtype
    # Another base is an error.
    record = tmp_path / "stored" / "config.json"
    record.write_text(record.read_text().replace(str(stored), str(compressed("nf4"))))
    with pytest.raises(CheckpointError, match="trained over a base with the content hash"):
        restore.for_inference(Workdir(tmp_path / "stored"))


def test_layers_that_an_adapter_parts(compressed, tuned, tmp_path):
    """The adapter cuts stacks after they were quantized; they hold the same codes."""
    targets = (("layer/.*/-1/attention", True), (".*", False))
    train(tuned("lora", compressed("nf4"), **{"adapt.targets": targets}), tmp_path / "run")
    whole = by_name(restore.for_inference(Workdir(compressed("nf4")))[1])
    parted = by_name(restore.for_inference(Workdir(tmp_path / "run"))[1])
    name = "attention/query/codes"
    np.testing.assert_array_equal(parted[f"stack/segments/0/0/{name}"][0], whole[f"stack/segments/0/0/{name}"][0])
    last = parted["stack/segments/1/0/attention/query/base/codes"]
    np.testing.assert_array_equal(last[0], whole[f"stack/segments/0/0/{name}"][1])


def test_a_damaged_file_is_found(compressed, tmp_path):
    shutil.copytree(compressed("int8"), tmp_path / "run")
    file = max((tmp_path / "run" / "checkpoints" / "0" / "model").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint 0 .* is damaged"):
        restore.for_inference(Workdir(tmp_path / "run"))


def test_what_was_not_finished_is_no_workdir(base, tmp_path, monkeypatch):
    """Killed before its config was written, or on a disk that stores wrong numbers."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workdirs, "_describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        compressing.compress(Workdir(base), tmp_path / "out", FORMS["int8"])
    with pytest.raises(ConfigError, match=r"not finished; delete it"):
        compressing.compress(Workdir(base), tmp_path / "out", FORMS["int8"])
    with pytest.raises(ConfigError, match="holds no run"):
        restore.for_inference(Workdir(tmp_path / "out"))
    read = Checkpoints.restore_arrays

    def lying(self, *args):
        return ((name, array ^ 1 if name.endswith("/codes") else array) for name, array in read(self, *args))

    monkeypatch.setattr(Checkpoints, "restore_arrays", lying)
    with pytest.raises(CheckpointError, match=r"/codes in .* has other numbers than were written"):
        compressing.compress(Workdir(base), tmp_path / "other", FORMS["int8"])


def test_refuses(base, compressed, tuned, tmp_path):
    new = Workdir(tmp_path / "new")
    with pytest.raises(ConfigError, match=r"holds weights in nf4, which can't train: train an adapter"):
        init_from.resolve(tuned("sft", compressed("nf4")), new)
    with pytest.raises(ConfigError, match=r"another form .*'base': 'int8'.* there, .*'nf4', 'double_quantization': Tr"):
        init_from.resolve(tuned("qlora", compressed("int8")), new)
    with pytest.raises(ConfigError, match=r"'double_quantization': False} there, .*'double_quantization': True} now"):
        init_from.resolve(tuned("qlora", compressed("nf4 single")), new)
    config = tuned("lora", base)
    config.compress = ConfigDict({"method": "nf4"})
    with pytest.raises(ConfigError, match=r"config\.compress\.method is a field that no run reads"):
        train(config, tmp_path / "new")
    fields = json.loads((base / "config.json").read_text())
    adapter = fields | {"init_from": str(base), "adapt": {"method": "lora"}}
    narrow = fields | {"model": fields["model"] | {"mlp_dim": 40}}
    for name, record in (("adapter", adapter), ("narrow", narrow)):
        shutil.copytree(base, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(record))
    with pytest.raises(
        ConfigError, match=f"over the model in {base}, but only a whole model can be compressed: merge it"
    ):
        compressing.compress(Workdir(tmp_path / "adapter"), tmp_path / "new", FORMS["nf4"])
    with pytest.raises(ConfigError, match=r"/down can't be quantized: it has 40 inputs.*int8 takes any"):
        compressing.compress(Workdir(tmp_path / "narrow"), tmp_path / "new", FORMS["nf4"])
    for form, words in (
        ({"method": "nf3"}, r"config.json: compress: a weight can't be quantized to 'nf3'; choose from nf4, int8"),
        (
            {"method": "int8", "double_quantization": True},
            "compress: double_quantization is not a field of int8; it has none",
        ),
        ({"method": "nf4", "double_quantization": 1}, "double quantization is 1; it must be True or False"),
    ):
        (tmp_path / "adapter" / "config.json").write_text(json.dumps(fields | {"compress": form}))
        with pytest.raises(ConfigError, match=words):
            restore.for_inference(Workdir(tmp_path / "adapter"))
    assert not (tmp_path / "new").exists()
