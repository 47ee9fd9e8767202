"""Runs over meshes give the losses of one device, however tokens are ordered; impossible meshes are refused."""

import jax
import numpy as np
import pytest

from launch.program.checking import ConfigError
from launch.run import build
from launch.train import train
from model import axes
from tests.launch.conftest import refused
from tests.launch.test_train import losses

DEVICES = jax.devices()


def test_a_run_continues_on_another_mesh(tiny, tmp_path, monkeypatch):
    """First pipeline, context and tensor parallelism; then ring attention and a circular pipeline, with the optimizer's
    state on the host. The losses are those of one device."""
    tiny.model.num_layers = 4
    train(tiny, tmp_path / "one")
    split = tmp_path / "split"
    monkeypatch.setattr(jax, "devices", lambda *_: DEVICES)
    tiny.mesh.update(stage=2, context=2, tensor=2)
    stopped = tiny.copy_and_resolve_references()
    monkeypatch.setattr(build, "put", until(4, build.put))
    with pytest.raises(KeyboardInterrupt):
        train(stopped, split)
    monkeypatch.undo()
    monkeypatch.setattr(jax, "devices", lambda *_: DEVICES)
    tiny.mesh.update(stage=2, context=4, tensor=1)
    tiny.model.update(context="ring", pipeline_groups=2)
    tiny.optimizer.offload = True
    train(tiny, split)
    one, other = losses(tmp_path / "one"), losses(split)
    assert list(one) == list(other) == list(range(1, 9))
    # Float32 sums in another order give small differences, which Adam's normalization enlarges in its first updates.
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-4)


def until(steps, make):
    """Returns `build.put`, but with an interrupt after so many batches."""

    def interrupting(mesh):
        put, calls = make(mesh), []

        def counted(batch):
            calls.append(1)
            if len(calls) > steps + 2:  # batches of an evaluation pass through it too
                raise KeyboardInterrupt
            return put(batch)

        return counted

    return interrupting


def test_zigzag():
    """All parts attend to the same number of earlier tokens, so the work is balanced."""
    order = axes.zigzag(16, 4).reshape(4, -1)
    assert order[0].tolist() == [0, 1, 14, 15] and order[3].tolist() == [6, 7, 8, 9]
    assert len({part.sum() for part in order}) == 1 and sorted(order.ravel()) == list(range(16))


@pytest.mark.parametrize(
    ("mesh", "model", "words"),
    [
        (dict(tensor=8), {}, ("model.num_kv_heads 2 cannot be split over mesh axis tensor=8", "that work: 1, 2")),
        (dict(stage=8), {}, ("model.num_layers 2", "cannot be split over mesh axis stage=8", "that work: 1, 2")),
        (dict(stage=2, data=4), dict(pipeline_groups=2), ("stage=2 x model.pipeline_groups=2", "that work: 1, 2")),
        (dict(stage=2, data=4), dict(share_groups=1), ("layers that share parameters",)),
        (dict(fsdp=2, context=4), dict(embed_dim=36, head_dim=8), ("model.embed_dim 36", "fsdp=2 x context=4")),
        (dict(data=4, stage=2), dict(pipeline_slots=3), ("pipeline_slots 3 does not divide the 1 rows",)),
    ],
)
def test_a_mesh_that_cannot_work_is_refused(mesh, model, words, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: DEVICES)
    tiny.mesh.update(mesh)
    tiny.model.update(model)
    refused(tiny, tmp_path / "run", ConfigError, *words)


def test_a_length_that_cannot_be_split_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: DEVICES)
    tiny.mesh.update(context=4, data=2)
    tiny.data.seq_len = 36
    refused(tiny, tmp_path / "run", ConfigError, "seq_len 36 cannot be split over context=4", "nearest that can: 40")


def test_experts_that_cannot_be_spread_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: DEVICES)
    tiny.mesh.update(expert=8)
    tiny.model.update(mlp_pattern=("sparse",), experts=dict(count=6, per_token=2, mlp_dim=16))
    refused(tiny, tmp_path / "run", ConfigError, "model.experts.count 6 cannot be split over mesh axis expert=8")
