"""Tests runs that tune another run's model: what they save, how they continue, and their errors."""

import hashlib
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.answers import held_out
from launch.conversion import adapters
from launch.program.checking import ConfigError
from launch.run import build, checks, models, restore
from launch.run.workdirs import Workdir
from launch.train import train
from model import axes
from model.roles import Role
from model.weights import by_name, trained
from tests.launch.conftest import shrink
from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.record import metrics

pytestmark = pytest.mark.xdist_group("tuning")  # one worker makes the base


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "colours.json"
    colours = ("red", "green", "blue", "brown")
    path.write_text(json.dumps([{"instruction": f"{i} fox?", "output": colours[i % 4]} for i in range(80)]))
    return path


def configured(name, base, data_dir, examples, **fields):
    config = shrink(importlib.import_module(f"configs.{name}").get_config(), data_dir, examples)
    config.init_from, config.steps, config.eval_every, config.checkpoint_every = str(base), 4, 2, 2
    config.data.update(path=str(examples), sources=(), split="document", seq_len=64)
    config.update_from_flattened_dict(fields)
    return config


def losses_by_step(workdir):
    """Returns the held-out loss by step."""
    return {
        row["step"]: row["validation/loss"]
        for row in metrics.read(workdir / "metrics.jsonl")
        if "validation/loss" in row
    }


def restored(workdir):
    """Returns the arrays of the latest model on the host."""
    return jax.device_get(by_name(restore.for_inference(Workdir(workdir))[1]))


def files(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_adapter_is_saved_alone_and_goes_on_bit_for_bit(base, data_dir, examples, tmp_path):
    before, fields = files(base), {"adapt.dropout": 0.1, "adapt.rank": 4}
    config = configured("lora", base, data_dir, examples, **fields)
    train(config, tmp_path / "run")
    assert files(base) == before
    model = restored(tmp_path / "run")
    for name, leaf in restored(base).items():  # bit-identical after training
        under = model.get(f"{name}/base", model.get(name))
        np.testing.assert_array_equal(under, leaf)
    listed = json.loads((tmp_path / "run" / "checkpoints" / "4" / "model" / "_METADATA").read_text())
    held = {entry["key_metadata"][0]["key"] for entry in listed["tree_metadata"].values()}
    assert held == {name for name in model if name.endswith(("/a", "/b"))} and len(held) == 14
    assert any(leaf.any() for name, leaf in model.items() if name.endswith("/b"))
    # Stopped after step 2 and continued.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "4")
    train(config, tmp_path / "again")
    for name, leaf in restored(tmp_path / "again").items():
        np.testing.assert_array_equal(leaf, model[name])
    assert losses_by_step(tmp_path / "again") == losses_by_step(tmp_path / "run")
    assert losses_by_step(tmp_path / "run")[4] < losses_by_step(tmp_path / "run")[0]
    # A changed base is an error, when the run continues and when it is used.
    shutil.copytree(base, tmp_path / "other")
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        changed = restore.model(Workdir(base), Workdir(base).architecture)
        changed.norm.scale[...] = changed.norm.scale[...].at[0].add(1e-6)
        shutil.rmtree(tmp_path / "other" / "checkpoints")
        Checkpoints(tmp_path / "other").save_model(3, changed)
    recorded = tmp_path / "again" / "config.json"
    recorded.write_text(recorded.read_text().replace(str(base), str(tmp_path / "other")))
    with pytest.raises(CheckpointError, match="trained over a base with the content hash"):
        restored(tmp_path / "again")


@pytest.mark.parametrize("name", ["adapter", "prompt", "qlora"])
def test_other_methods_begin_as_the_base_and_are_read_again(name, base, data_dir, examples, tmp_path, capsys):
    fields = {}
    if name == "qlora":  # the base is in bfloat16, trained parameters in float32
        fields |= {"train_only": (("norm", True), (".*", False))}
    if name == "prompt":
        fields |= {"adapt.length": 3, "adapt.init_text": "fox"}
    if name == "adapter":
        fields |= {"adapt.placement": "houlsby", "adapt.reduction": 4}
    config = configured(name, base, data_dir, examples, **fields)
    config.steps, config.optimizer.warmup_steps = 2, 1
    train(config, tmp_path / "run")
    mesh, model, _ = restore.for_inference(Workdir(tmp_path / "run"))
    facts = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [source["bytes"] for source in facts["corpus"]] == [None]
    facts = facts["model"]
    assert facts["trained_parameters"] == sum(leaf.size for leaf in trained(model).values())
    assert f"{facts['trained_parameters']:,} of " in capsys.readouterr().out
    losses = losses_by_step(tmp_path / "run")
    with axes.use_mesh(mesh):
        logits = model.logits(jnp.arange(6)[None])
    assert np.isfinite(logits).all() and losses[2] != losses[0]
    if name == "qlora":
        assert facts["quantized_weights"] and facts["quantized_bytes"] < 0.8 * facts["quantized_weights"]
        norms = {path: w[...] for path, w in trained(model).items() if "norm" in path}
        assert len(norms) == 3 and all((w != w.astype(jnp.bfloat16)).any() for w in norms.values())
        adapters.merge(Workdir(tmp_path / "run"), tmp_path / "merged")
        merged = restored(tmp_path / "merged")
        for path, w in norms.items():
            np.testing.assert_array_equal(merged[path], w)


def test_before_and_after():
    rows = [
        {"step": step, "validation/loss": loss, "validation/unigram": 9.0} for step, loss in ((0, 3), (2, 1), (4, 2))
    ]
    rows.insert(1, {"step": 1, "train/loss": 5.0})
    assert held_out.before_and_after(rows, 4) == "held out  step 0  step 4\nloss           3       2\n"
    table = "held out  step 0  step 2 (best)  step 4\nloss           3              1       2\n"
    assert held_out.before_and_after(rows, 2) == table
    assert held_out.before_and_after(rows[:1], None) == ""
    rows = [row | {"validation/kl": 0.5, "validation/bins": [[1, 2]]} for row in rows]  # not a number: left out
    table = "held out  step 0  step 4  meaning\nloss           3       2\nkl           0.5     0.5  nats per token\n"
    assert held_out.before_and_after(rows, None, {"kl": "nats per token"}) == table


def test_the_last_layer_alone_and_what_begins_with_an_adapter(base, data_dir, examples, tmp_path):
    """A LoRA run starts with the loss of its base; a run that starts from a LoRA run starts with its last loss."""
    lora = configured("lora", base, data_dir, examples)
    train(lora, tmp_path / "lora")
    last = {"train_only": (("layer/.*/-1/|^norm", True), (".*", False))}
    train(configured("sft", base, data_dir, examples, **last), tmp_path / "last")
    assert losses_by_step(tmp_path / "lora")[0] == pytest.approx(losses_by_step(tmp_path / "last")[0], abs=1e-6)
    old, new = restored(base), restored(tmp_path / "last")
    inside = [name for name in old if name.startswith("stack/")]
    for name in inside:
        first, second = (name.replace("segments/0", f"segments/{number}") for number in (0, 1))
        np.testing.assert_array_equal(new[first][0], old[name][0])
        assert (new[second][0] != old[name][1]).any()
    assert (new["inputs/tokens/table"] == old["inputs/tokens/table"]).all()
    assert len(inside) and (new["norm/scale"] != old["norm/scale"]).any()
    on = configured("sft", tmp_path / "lora", data_dir, examples)
    on.steps, on.optimizer.warmup_steps = 2, 1
    train(on, tmp_path / "on")
    assert losses_by_step(tmp_path / "on")[0] == pytest.approx(losses_by_step(tmp_path / "lora")[4], abs=1e-5)


def test_an_earlier_step_of_a_base_that_trains_on(base, data_dir, examples, corpus, tmp_path):
    """An adapter stays over the step that it was trained over; if that is gone, the error lists the kept ones."""
    source = tmp_path / "source"
    shutil.copytree(base, source)
    config = configured("lora", str(source) + "/", data_dir, examples)
    config.init_step, config.steps, config.optimizer.warmup_steps = "latest", 2, 1
    train(config, tmp_path / "run")
    assert Workdir(tmp_path / "run").config.init_step == "3"
    wanted = restored(tmp_path / "run")
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        model = restore.model(Workdir(source), Workdir(source).architecture)
        model.norm.scale[...] = model.norm.scale[...] + 1
        later = Checkpoints(source, keep_last=2)
        later.save_model(6, model)
        later.close()
    for name, leaf in restored(tmp_path / "run").items():
        np.testing.assert_array_equal(leaf, wanted[name])
    config.init_from = str(source)
    assert train(config, tmp_path / "run")  # is done
    with pytest.raises(ConfigError, match=r"init_step: '3' there, '6' now"):
        train(configured("lora", source, data_dir, examples, init_step="6"), tmp_path / "run")
    with pytest.raises(CheckpointError, match="no step '5'; there are: 3, 6"):
        train(configured("lora", source, data_dir, examples, init_step="5"), tmp_path / "new")
    # If the base was moved, the error comes at once and says what to do.
    shutil.move(source, tmp_path / "elsewhere")
    with pytest.raises(
        ConfigError, match=r"source, which is gone: bring it back, or set init_from in .*config.json to its new"
    ):
        restored(tmp_path / "run")
    recorded = tmp_path / "run" / "config.json"
    recorded.write_text(
        recorded.read_text().replace(f'"init_from": "{source}/"', f'"init_from": "{tmp_path}/elsewhere"')
    )
    for name, leaf in restored(tmp_path / "run").items():
        np.testing.assert_array_equal(leaf, wanted[name])
    longer = configured("lora", tmp_path / "elsewhere", data_dir, examples)
    longer.steps, longer.optimizer.warmup_steps = 2, 1
    assert train(longer, tmp_path / "run")


def test_what_can_not_be_begun_with_is_refused_before_anything_is_made(base, data_dir, examples, tmp_path):
    record = json.loads((base / "config.json").read_text()) | {"init_from": str(base)}
    record["adapt"] = {"method": "prompt", "length": 3}
    shutil.copytree(base, tmp_path / "prompt")
    (tmp_path / "prompt" / "config.json").write_text(json.dumps(record))
    with pytest.raises(
        ConfigError, match=f"method prompt, which can't be merged into the base; begin with the base itself, {base}"
    ):
        train(configured("sft", tmp_path / "prompt", data_dir, examples), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refuses(base, data_dir, examples, tmp_path):
    for name, fields, words in (
        ("lora", {"init_from": ""}, "set config.init_from to its workdir"),
        ("lora", {"adapt.rank": 0}, "config.adapt.rank is 0"),
        ("lora", {"adapt.targets": (("q_proj", True), (".*", False))}, "no pattern finds .*: attention/key, .*query"),
        ("qlora", {"train_only": (("attention", True), (".*", False))}, "is quantized and can't train"),
        ("adapter", {"adapt.activation": "tanh"}, "config.adapt: activation is 'tanh'; choose from .*swish"),
        ("sft", {"train_only": ((".*", False),)}, "no parameter would train"),
        ("sft", {"train_only": (("[", True),)}, r"config: train_only must be pairs .*: unterminated character set"),
        (
            "sft",
            {"train_only": (".*", False)},
            r"config: train_only must be pairs of .*, like \(\('.\*', True\),\), not",
        ),
        ("lora", {"adapt.targets": ("attention", True)}, "config: adapt.targets must be pairs of"),
        (
            "lora",
            {"adapt.targets": (("attention", True),)},
            "config: no pattern of adapt.targets matches .* end the list",
        ),
        ("sft", {"train_only": (("norm", True),)}, "config: no pattern of train_only matches"),
        ("sft", {"optimizer.rates": (("norm", 0.5),)}, "config.optimizer: no pattern of optimizer.rates matches"),
        (
            "sft",
            {"optimizer.rates": (("layer/9/", 0.5), (".*", 1.0))},
            "the pattern 'layer/9/' of optimizer.rates matches no",
        ),
        (
            "lora",
            {"adapt.targets": (("atention", True), (".*", True))},
            "the pattern 'atention' of adapt.targets matches no",
        ),
        ("sft", {"optimizer.decay": ("norm", True)}, "config.optimizer: optimizer.decay must be pairs of"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(configured(name, base, data_dir, examples, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_widths_that_can_not_be_quantized_are_found_before_anything_is_made(data_dir, examples):
    config = configured("qlora", "", data_dir, examples, **{"model.mlp_dim": 40})
    with pytest.raises(ConfigError, match=r"config.adapt.*/down can't be quantized: it has 40 inputs.*int8 takes any"):
        checks.check(config, build.mesh(config))


def test_an_adapter_that_peft_can_not_read_is_noted(data_dir, corpus):
    """The note comes at the start of the run, not at the export."""
    config = shrink(importlib.import_module("configs.pretrain_moe").get_config(), data_dir, corpus)
    config.model.experts.mlp_dim, config.objective.balance_loss = 48, 0.01
    model, attention = models.model_config(config, 64), "stack/segments/0/0/attention/query"
    trains = lambda *names: dict.fromkeys(names, nnx.Param(jnp.zeros(1), role=Role.LOW_RANK))
    assert not checks.notes(config, model, trains(f"{attention}/a", f"{attention}/b"))
    (note,) = checks.notes(config, model, trains(f"{attention}/a", "stack/segments/0/0/feed_forward/experts_up/a"))
    assert note.startswith("note: peft can't read an adapter of stack/segments/0/0/feed_forward/experts_up")
