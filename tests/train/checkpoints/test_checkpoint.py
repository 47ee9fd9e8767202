"""Checkpoints: written on one mesh and read on another, which ones are kept, and error messages."""

import contextlib
import errno
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from configs import pretrain_decoder
from model import axes
from model.architectures import Decoder
from tests.model import tiny
from train import optimizer, state
from train.checkpoints import manifest
from train.checkpoints.checkpoint import CheckpointError, Checkpoints

TX = optimizer.make_optimizer(pretrain_decoder.get_config().optimizer, lambda step: 0.01, tiny.LLAMA)


def make(rngs):
    return Decoder(tiny.LLAMA, rngs)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns (directory, leaves on the host) of a state that was sharded over data, fsdp and tensor."""
    directory = tmp_path_factory.mktemp("sharded")
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        made = state.create(make, TX, seed=1)
        checkpoints = Checkpoints(directory)
        checkpoints.save(3, made, {"position": {"rows": 5}})
        checkpoints.wait()
        checkpoints.close()
        return directory, jax.device_get(jax.tree.leaves(made))


@pytest.mark.parametrize("shape", [{"fsdp": 4, "tensor": 2}, {"data": 1}])
def test_read_on_another_mesh(written, shape):
    """The values are bit-identical, and have the shardings of the new mesh instead of those they were written with."""
    directory, expected = written
    devices = jax.devices()[: 1 if "data" in shape else 8]
    with axes.use_mesh(axes.make_mesh(shape, devices)):
        abstract = state.abstract(make, TX)
        restored, loop = Checkpoints(directory).restore(abstract)
        model = Checkpoints(directory).restore_model(state.abstract_model(make))
    assert loop == {"position": {"rows": 5}}
    for leaf, wanted, value in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), expected, strict=True):
        assert leaf.sharding == wanted.sharding
        assert leaf.dtype == wanted.dtype
        np.testing.assert_array_equal(leaf, value)
    for leaf, value in zip(jax.tree.leaves(model), jax.tree.leaves(restored.model), strict=True):
        np.testing.assert_array_equal(leaf, value)


def test_keeps_the_newest_and_the_best(tmp_path):
    """Of six steps with losses 3, 1, none, 2, 4 and 3.5, the two newest stay and the one with loss 1.

    A step without a loss is never the best. Each step is saved by a new Checkpoints object, which must know the losses
    of all earlier ones.
    """
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        made = state.create(make, TX, seed=1)
        for step, loss in enumerate((3.0, 1.0, None, 2.0, 4.0, 3.5), start=1):
            checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
            checkpoints.save(step, made, {}, {"validation/loss": loss} if loss else None)
            checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == [2, 5, 6]


def test_finds_what_a_user_means(tmp_path):
    """Steps are found by accuracy; 0 counts as a value, inf and nan don't. '' is the best step after an early stop."""
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        made = state.create(make, TX, seed=1)
        checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=2, metric="validation/accuracy")
        assert checkpoints.loop() == {}
        for step, accuracy in enumerate((-0.5, 0.0, 0.5, float("inf"), float("nan")), start=1):
            checkpoints.save(step, made, {"early_stopping": {"ended": step == 5}}, {"validation/accuracy": accuracy})
            checkpoints.wait()
            assert checkpoints.find() == (3 if step == 5 else step)
    assert [checkpoints.find(wanted) for wanted in ("best", "latest", "2")] == [3, 5, 2]
    for wanted in ("4", "1", "last", "-1"):
        with pytest.raises(
            CheckpointError, match=rf"no step '{wanted}'; there are: 2, 3, 5; evaluated .*accuracy: 2, 3"
        ):
            checkpoints.find(wanted)


def test_who_only_reads_leaves_what_is_being_written(tmp_path, capfd):
    first = Checkpoints(tmp_path)
    first.save_model(3, nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    first.close()
    assert "WARNING" not in capfd.readouterr().err
    unfinished = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "3", unfinished)
    assert Checkpoints(tmp_path, reading=True).latest_step == 3
    time.sleep(1)  # Orbax deletes unfinished steps in the background, within milliseconds
    assert unfinished.exists()
    again = Checkpoints(tmp_path)
    for _ in range(200):
        time.sleep(0.1 * unfinished.exists())
    assert not unfinished.exists()
    with pytest.raises(CheckpointError, match="holds step 3, so step 3 was not written"):
        again.save_model(3, nnx.Linear(2, 2, rngs=nnx.Rngs(1)))


@pytest.fixture
def full_disk(monkeypatch):
    """Returns a switch: the first call makes saves fail after all data is written, the next one ends that."""
    write, full = manifest.write, []

    def fails(folder):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder)

    monkeypatch.setattr(manifest, "write", fails)
    return lambda: full.pop() if full else full.append(True)


def test_a_save_that_fails_takes_no_good_one_with_it(tmp_path, full_disk, monkeypatch):
    """The errors are read before Orbax's own thread wakes up; it deletes old steps if it hears of no error."""
    late = lambda self, then=ocp.AsyncCheckpointer.wait_until_finished: (time.sleep(0.3), then(self))
    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", late)
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=0)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    checkpoints.save_model(1, model)
    for step in (2, 3):
        full_disk()
        checkpoints._write(step, ocp.args.Composite(model=ocp.args.StandardSave(checkpoints._held(model))), {})
        with pytest.raises(CheckpointError, match=r"last complete one is step 1.*No space left"):
            for _ in range(100):
                checkpoints.check()
                time.sleep(0.01)
        full_disk()
        assert checkpoints.steps() == [1] == [int(path.name) for path in checkpoints.directory.iterdir()]


def test_old_steps_go_also_after_saves_that_failed(tmp_path, full_disk):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=0)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    for step in range(1, 9):
        if fails := step in (3, 5, 6):
            full_disk()
        with pytest.raises(CheckpointError, match="No space left") if fails else contextlib.nullcontext():
            checkpoints.save_model(step, model)
        if fails:
            full_disk()
    assert checkpoints.steps() == [7, 8] == sorted(int(path.name) for path in checkpoints.directory.iterdir())


def test_a_damaged_checkpoint_is_named(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "copy")
    for path in (tmp_path / "copy/checkpoints/3/model").rglob("*"):
        if path.is_file() and path.name not in ("_METADATA", "_CHECKPOINT_METADATA"):
            path.write_bytes(b"")
    with axes.use_mesh(axes.make_mesh({"data": 1}, jax.devices()[:1])):
        for verify, words in (("full", "is damaged: model/"), ("off", r"\(the last complete one is step 3\)")):
            checkpoints = Checkpoints(tmp_path / "copy", verify=verify)
            with pytest.raises(CheckpointError, match=rf"checkpoint 3 in .*copy/checkpoints.* {words}"):
                checkpoints.restore(state.abstract(make, TX))
