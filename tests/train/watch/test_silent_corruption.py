"""A single wrong bit on one device is found, and the error names the device."""

import dataclasses

import jax
import numpy as np
import pytest

from model import axes
from model.value_head import ValueHead
from tests.train.test_step import CONFIG, batch, start
from train import state as states
from train import step
from train.objectives.language import Language
from train.optimizer import fetched
from train.watch import silent_corruption
from train.watch.silent_corruption import Checker, SilentCorruption, differing_replicas


def flipped(array: jax.Array, device: jax.Device, bit: int = 0) -> jax.Array:
    """Returns the array with one bit flipped, in the middle of the shard on `device`."""
    parts = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device == device:
            data.reshape(-1).view(f"u{data.itemsize}")[data.size // 2] ^= 1 << bit
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def flip(state, name: str, device: jax.Device, bit: int = 0):
    """Returns the state with one flipped array: the first whose name ends with `name`."""
    done = []

    def one(path, leaf):
        here = jax.tree_util.keystr(path, simple=True, separator="/")
        if not done and here.removesuffix("/value").endswith(name):
            done.append(here)
            return flipped(leaf, device, bit)
        return leaf

    found = jax.tree_util.tree_map_with_path(one, state)
    assert done
    return found


@pytest.fixture(params=[{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "fsdp": 2}], ids=str)
def run(request):
    """Yields (mesh, state, train step, a batch on the devices)."""
    with axes.use_mesh(axes.make_mesh(request.param)) as mesh:
        tx, state = start(offload=request.param.get("tensor") == 2)
        train_step = step.make_train_step(Language(), tx)
        yield mesh, state, train_step, jax.device_put(batch(), axes.batch_sharding(mesh))


def test_a_good_step_is_the_same_step(run):
    _, state, train_step, rows = run
    twin = jax.tree.map(lambda a: a.copy(), state)
    expected, metrics = train_step(twin, rows)
    found, result = Checker(train_step).twice(state, rows, 1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert float(result["loss"]) == float(metrics["loss"])
    assert differing_replicas(found) == {}


@pytest.mark.parametrize("name", ["attention/query", "norm/scale", "step"])
def test_a_flipped_bit_of_a_replica_is_named(run, name):
    mesh, state, train_step, rows = run
    device = mesh.devices.flat[5]
    wrong = flip(state, name, device)
    ((_, devices),) = differing_replicas(wrong).items()
    replicas = len([d for d in mesh.devices.flat if same_part(wrong, name, d, device)])
    assert device in devices and len(devices) == (1 if replicas > 2 else 2)
    checker = Checker(train_step, named=lambda d: f"<{d.id}>")
    with pytest.raises(
        SilentCorruption, match=rf"after step 6; this was the first check: .*<{device.id}>.*, in .*{name}"
    ) as caught:
        checker.twice(wrong, rows, 7)
    assert "\n" not in str(caught.value)


def same_part(state, name, one, other) -> bool:
    (array,) = [a for n, a in silent_corruption._arrays(state).items() if n.endswith(name)][:1]
    where = array.sharding.devices_indices_map(array.shape)
    return where[one] == where[other]


@pytest.mark.parametrize("name", ["model/classifier/weight", "mu/classifier/bias"])
def test_a_flipped_bit_of_a_critic_is_named(name):
    """Its optimizer state is on the hosts, like that of the model."""
    with axes.use_mesh(axes.make_mesh({"data": 8})) as mesh:
        tx, state = start(offload=True)
        state.critic = states.critic(states.made(lambda rngs: ValueHead(CONFIG, rngs), 0), tx)
        Checker(None).replicas(state, 0)
        moved = flip(dataclasses.replace(state, critic=fetched(state.critic)), name, mesh.devices.flat[2])
        with pytest.raises(SilentCorruption, match=rf"after step 6.*: {mesh.devices.flat[2]}, in critic/.*{name}"):
            Checker(None).replicas(moved, 6)


@pytest.mark.parametrize("which", [0, 1])
def test_a_step_with_two_results_is_named(run, which):
    """The device is wrong once, by one bit, in a shard that it alone has or that all devices have."""
    mesh, state, train_step, rows = run
    device, calls = mesh.devices.flat[3], []

    def faulty(state, rows):
        calls.append(state)
        state, result = train_step(state, rows)
        return (flip(state, "attention/query", device, bit=20) if len(calls) == which + 1 else state), result

    with pytest.raises(
        SilentCorruption, match=rf"step 4, computed twice, had two results.*3 passed: <{device.id}>, in model"
    ):
        Checker(faulty, named=lambda d: f"<{d.id}>").twice(state, rows, 4)
    assert len(calls) == 2
