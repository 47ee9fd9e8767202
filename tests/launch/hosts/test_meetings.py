"""Two real processes exchange what they find: which process is missing, damaged checkpoints, a faulty device."""

import re
import socket

from tests.launch.hosts.test_processes import together
from train.checkpoints import manifest

# Two processes that meet at barriers, where the second arrives late at the last one. With a word as argument, they must
# first find a flipped bit in the memory of a device of the second process.
MEETING = """
import dataclasses, sys, time
word = sys.argv.pop(1)
from launch.hosts import distributed
from launch.program import runtime
import jax, jax.numpy as jnp, numpy as np
from model import axes
from train.watch.silent_corruption import Checker
from train.state import TrainState

def flipped(array, device):
    parts = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        data.view(np.uint32)[3] ^= shard.device == device
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)

def main():
    with distributed.joined(), axes.use_mesh(axes.make_mesh({"data": 4})) as mesh:
        distributed.meet("the beginning", 60)
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, {"table": jnp.ones(8)}, (), zero, zero, jnp.ones(2))
        step = jax.jit(lambda state, batch: (dataclasses.replace(state, step=state.step + 1), {}))
        checker = Checker(step, distributed.device_name)
        state, _ = checker.twice(state, None, 1)
        if word:
            state.model = {"table": flipped(state.model["table"], mesh.devices.flat[3])}
            checker.twice(state, None, 2)
        if jax.process_index():
            time.sleep(6)
        distributed.meet("the save of step 4", 2)

runtime.run(main)
"""


# Two processes that set aside the damaged checkpoints of many workdirs, one after another.
SETTLING = """
import sys
from pathlib import Path
place = Path(sys.argv.pop(1))
from launch.hosts import distributed
from launch.training import recovery
from launch.program import runtime

def main():
    with distributed.joined():
        for workdir in sorted(place.iterdir()):
            recovery.settle(workdir, "full")

runtime.run(main)
"""


def test_a_process_that_does_not_arrive_is_named(tmp_path):
    ended = together([[MEETING, ""]] * 2, tmp_path / "late")
    assert [status for status, *_ in ended] == [1, 1], ended
    errors = ended[0][2]
    host = socket.gethostname()
    assert f"error: the save of step 4: all processes wait for each other before it, and process 1 on {host}" in errors
    assert "did not arrive within 2 seconds (config.watchdog.barrier)" in errors and "Traceback" not in errors
    assert f"process 0 of 2 on {host} failed: the save of step 4" in ended[1][2]


def test_all_set_the_same_checkpoints_aside(tmp_path):
    """The first process moves a folder while the other may still look for a free name."""
    for i in range(20):
        for step in ("4", "8", "12"):
            folder = tmp_path / "runs" / str(i) / "checkpoints" / step
            folder.mkdir(parents=True)
            (folder / "loop").write_text("{}")
        manifest.write(folder.with_name("4"))
    ended = together([[SETTLING, str(tmp_path / "runs")]] * 2, tmp_path / "settled")
    assert [status for status, *_ in ended] == [0, 0], ended
    for run in (tmp_path / "runs").iterdir():
        assert {path.name for path in (run / "damaged").iterdir()} == {"8", "12"}
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["4"]


def test_a_device_of_another_process_is_named(tmp_path):
    """One bit is flipped in one of four replicas."""
    ended = together([[MEETING, "flip"]] * 2, tmp_path / "wrong")
    assert [status for status, *_ in ended] == [1, 1], ended
    device = rf"cpu \d+ of process 1 on {socket.gethostname()}"
    found = rf"silent corruption, after step 1; the check after step 1 passed: {device}, in model/table"
    assert all(re.search(found, errors) for *_, errors in ended), ended  # one reports it, and the other repeats it
