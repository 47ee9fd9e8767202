"""DPO and KTO with the reference's log-probabilities computed once: equal to those of every step, kept, and checked."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from data.added import Added
from data.batch import DataError
from launch.answers import held_out
from launch.conversion import adapters
from launch.program.checking import ConfigError
from launch.run import build, companions, models, restore
from launch.run.workdirs import Workdir
from launch.train import train
from launch.training import references, replay, runs
from model import axes
from model.weights import by_name
from tests.launch.conftest import refused
from tests.launch.methods import test_kto, test_preference
from tests.launch.methods.test_kto import judged  # noqa: F401
from tests.launch.methods.test_preference import preferences  # noqa: F401
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics

DEVICES = jax.devices()
pytestmark = pytest.mark.xdist_group("preference")  # the worker that makes the base


@pytest.fixture(scope="module")
def made(tmp_path_factory, base, data_dir, preferences, judged):  # noqa: F811
    """(method, argument of its config, fields) -> a config with precompute, over data of its own."""

    def make(method, argument="tiny", **fields):
        if method == "kto":
            config = test_kto.configured(argument, base, data_dir, judged)
        else:
            config = test_preference.configured(argument, base, data_dir, preferences)
            config.objective.method = method
        config.objective.precompute, config.eval_every, config.checkpoint_every = True, 4, 4
        config.update_from_flattened_dict(fields)
        return config

    return make


@pytest.fixture
def computed(monkeypatch):
    """The folder of each computation."""
    found = []
    compute = Added.compute
    monkeypatch.setattr(Added, "compute", lambda self, *given: found.append(self.folder) or compute(self, *given))
    return found


@pytest.fixture
def own(tmp_path, data_dir):
    """A folder of prepared data in which no log-probabilities are stored."""
    return shutil.copytree(data_dir, tmp_path / "data", ignore=shutil.ignore_patterns("reference_logprobs"))


def recorded(workdir):
    """Returns the figures of training and of evaluations by step, without those about time and without kl."""
    rows = metrics.read(workdir / "metrics.jsonl")
    names = ("loss", "accuracy", "margin", "grad_norm", "reward", "reference_point")
    keep = lambda name: any(part in name for part in names)
    return [{name: value for name, value in row.items() if keep(name)} for row in rows if "event" not in row]


def parameters(workdir, step="8"):
    _, model, _ = restore.for_inference(Workdir(workdir), step=step)
    return {name: np.asarray(array, np.float64) for name, array in by_name(model).items()}


CASES = [
    ("dpo", "tiny"),
    ("dpo", "lora"),
    ("dpo", "qlora"),
    ("dpo", "adapter"),
    ("kto", "tiny"),
]


@pytest.mark.parametrize(("method", "argument"), CASES)
def test_it_equals_a_reference_beside_the_model(method, argument, made, own, tmp_path):
    config = made(method, argument, **{"data.dir": str(own)})
    assert train(config, tmp_path / "before")
    assert [*(own / "reference_logprobs").iterdir()]
    config.objective.precompute = False
    assert train(config, tmp_path / "beside")
    before, beside = recorded(tmp_path / "before"), recorded(tmp_path / "beside")
    assert len(before) == len(beside) > 10
    for one, other in zip(before, beside, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    one, other = parameters(tmp_path / "before"), parameters(tmp_path / "beside")
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-6 * np.abs(other[name]).max())


def test_a_stopped_run_goes_on_bit_for_bit_and_loads_no_reference(made, computed, own, tmp_path, monkeypatch):
    def stop(step, figures):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    config = made("dpo", **{"data.dir": str(own)})
    assert train(config, tmp_path / "whole")
    assert not train(config, tmp_path / "run", observe=stop)
    loaded = []
    pretrained = restore.pretrained
    monkeypatch.setattr(
        restore, "pretrained", lambda *given, **more: loaded.append(given) or pretrained(*given, **more)
    )
    assert train(config, tmp_path / "run")
    assert recorded(tmp_path / "run") == recorded(tmp_path / "whole") and not loaded
    one, other = parameters(tmp_path / "run"), parameters(tmp_path / "whole")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len(computed) == 1
    shutil.rmtree(own / "reference_logprobs")  # computed again where it is missing, to repeat a step here
    replay.show(config, tmp_path / "run", (), 6)
    assert len(computed) == 2 and len(loaded) == 1


def test_it_is_computed_once_for_the_same_rows_and_reference(made, computed, own, tmp_path, capsys):
    fields = {"data.dir": str(own), "steps": 4}
    assert train(made("dpo", **fields), tmp_path / "first")
    same = {"seed": 3, "batch_size": 4, "objective.beta": 0.3, "model.attention": "xla", "model.dropout": 0.1}
    assert train(made("dpo", **fields, **same), tmp_path / "same")
    assert train(made("ipo", "lora", **fields), tmp_path / "adapter")  # over the same model
    assert len(computed) == 1
    others = [{"init_from": str(tmp_path / "first")}, {"model.dtype": "bfloat16"}, {"data.validation": 0.3}]
    for number, other in enumerate(others):
        assert train(made("dpo", **fields, **other), tmp_path / str(number))
    assert train(made("dpo", "qlora", **fields), tmp_path / "quantized")
    assert len(computed) == len({*computed}) == 5
    assert "validation/kl" not in json.dumps(metrics.read(tmp_path / "first" / "metrics.jsonl"))


def test_several_sources_with_weights(made, own, preferences, tmp_path):  # noqa: F811
    """One of them is only watched."""
    others = []
    for name, colour in (("more", "green"), ("watched", "white")):
        others.append(tmp_path / f"{name}.jsonl")
        others[-1].write_text(preferences.read_text().replace("red", colour))
    sources = tuple((f"preferences:{path}", weight) for path, weight in zip(others, (0.3, 0.0), strict=True))
    config = made("dpo", **{"data.dir": str(own), "data.sources": sources, "steps": 12})
    assert train(config, tmp_path / "before")
    config.objective.precompute = False
    assert train(config, tmp_path / "beside")
    before, beside = recorded(tmp_path / "before"), recorded(tmp_path / "beside")
    assert any(name.startswith("validation/watched") for row in before for name in row)
    for one, other in zip(before, beside, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


def test_the_mesh_changes_nothing(made, computed, own, tmp_path, monkeypatch):
    """Rows whose tokens were reordered for their devices are stored in their own order, and found on one device."""
    fields = {"data.dir": str(own), "steps": 4}
    on_mesh = {"mesh.context": 2, "mesh.fsdp": 2}
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: DEVICES[:4])
        assert train(made("dpo", **fields, **on_mesh), tmp_path / "mesh")
    assert train(made("dpo", **fields), tmp_path / "one")
    assert len(computed) == 1
    assert train(made("dpo", **fields, **{"objective.precompute": False}), tmp_path / "beside")
    for name in ("one", "mesh"):
        for one, other in zip(recorded(tmp_path / name), recorded(tmp_path / "beside"), strict=True):
            # Where the model still is its reference, rounding decides which reward is larger.
            exact = {figure: value for figure, value in other.items() if "accuracy" not in figure}
            assert {figure: one[figure] for figure in exact} == pytest.approx(exact, rel=2e-4, abs=1e-5)


def damage(folder, split):
    """Flips a bit in the middle of a split's rows."""
    (path,) = folder.glob(f"*/{split}/rows.array_record")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_files_are_noticed(made, computed, own, tmp_path):
    config = made("dpo", **{"data.dir": str(own), "data.max_bad_lines": 0})
    assert train(config, tmp_path / "first")
    (folder,) = computed
    whole = recorded(tmp_path / "first")
    for number, split in enumerate(("train", "validation")):
        damage(folder, split)
        with pytest.raises(DataError, match=rf"({folder}.* is damaged|can't be read).*Move {folder} away"):
            train(config, tmp_path / f"damaged{number}")
        shutil.rmtree(folder)
        assert train(config, tmp_path / f"again{number}")
        assert recorded(tmp_path / f"again{number}") == whole
    (path,) = folder.glob("*/train/rows.array_record")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="is damaged"):
        train(config, tmp_path / "truncated")
    (folder / "manifest.json").write_text("{")
    assert train(config, tmp_path / "last")
    assert recorded(tmp_path / "last") == whole and (folder.parent / f"{folder.name}.damaged.1").exists()


def test_a_kill_in_the_middle_leaves_nothing_that_looks_finished(made, computed, own, tmp_path, monkeypatch):
    config = made("dpo", **{"data.dir": str(own)})
    calls = []

    def killed(*given):
        calls.append(given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(references, "reference_logprobs", lambda *given: killed(*given))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    assert calls
    (folder,) = computed
    assert not folder.exists() and folder.with_name(f"{folder.name}.partial").exists()
    assert train(config, tmp_path / "run")
    assert folder.exists() and not folder.with_name(f"{folder.name}.partial").exists()


@pytest.mark.parametrize("argument", ["tiny", "lora"])
def test_the_step_has_no_reference(argument, made, own, tmp_path):
    """Neither its parameters nor its forward pass."""

    def step(precompute):
        config = made("dpo", argument, **{"data.dir": str(own), "objective.precompute": precompute})
        run = runs.opened(config, tmp_path / str(precompute))
        with axes.use_mesh(run.mesh):
            checkpoints = Checkpoints(tmp_path / str(precompute))
            live = lambda: sum(array.nbytes for array in jax.live_arrays())
            before = live()
            run, tx = references.stored(run, checkpoints, 0), run.optimizer()
            assert live() - before < 10_000  # the reference was freed
            state = run.state(tx, checkpoints)
            checkpoints.close()
            source = run.source(None)
            batch = build.put(run.mesh)(source.next(state))
            source.close()
            compiled = build.steps(run.config, tx, run.objective)[0].lower(state, batch).compile()
            flops = build.flops(run.config, state, None)
        sizes = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        return sizes(state), compiled.cost_analysis()["flops"], flops, sizes(state.model)

    (with_bytes, with_flops, with_model_flops, model), (bytes_, flops, model_flops, _) = step(False), step(True)
    assert with_bytes - bytes_ == (model if argument == "tiny" else 0)
    assert 0.15 < 1 - flops / with_flops < 0.35 and model_flops < with_model_flops


def test_what_is_evaluated_later_has_the_kl_too(made, own, tmp_path):
    """And a merged adapter keeps its reference."""
    config = made("dpo", "lora", **{"data.dir": str(own)})
    assert train(config, tmp_path / "run")
    adapters.merge(Workdir(tmp_path / "run"), tmp_path / "merged")
    saw = [row for row in recorded(tmp_path / "run") if "validation/loss" in row][-1]
    for name in ("run", "merged"):
        run = Workdir(tmp_path / name)
        mesh, model, _ = restore.for_inference(run, build.mesh(run.config))
        with axes.use_mesh(mesh):
            objective = models.objective(run.config).beside()
            beside = companions.found(objective, run.config, model, run.companions()).models
            step = build.make_eval_step(objective)
            evaluate = held_out.Evaluation(run.config, run.prepared, None, objective, step, mesh)
            found = evaluate(model, None, beside)
        assert found["validation/kl"] > 0
        assert {figure: found[figure] for figure in saw} == pytest.approx(saw, rel=1e-5, abs=1e-5)


def test_mistakes_are_named_early(made, tmp_path):
    where = tmp_path / "run"
    config = made("simpo")
    refused(config, where, ConfigError, "config.objective.precompute has no effect in method 'simpo'")
    refused(made("dpo", **{"data.augment.delete": 0.1}), where, ConfigError, "config.data.augment changes them")
    refused(made("kto", **{"data.augment.swap": 0.1}), where, ConfigError, "config.data.augment changes them")
    refused(made("dpo", **{"data.format": "prompts"}), where, ConfigError, "to prompts the model samples its own")
    refused(
        made("dpo", init_from=""), where, ConfigError, "config.init_from is empty", "'preference' needs a reference"
    )
    assert not where.exists()


def test_another_reference_than_the_run_began_with(made, base, own, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    config = made("dpo", **{"data.dir": str(own), "init_from": str(moved)})
    assert train(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(record | {"steps": 12}))
    other = Workdir(base).config
    other.seed, other.mesh.data = 1, 1
    shutil.rmtree(moved)
    assert train(other, moved)
    shutil.rmtree(own / "reference_logprobs")
    config.steps = 12
    refused(config, tmp_path / "run", ConfigError, "another model than when the run began")
