"""Two processes with four devices each fill their shards of one model, and write it together."""

import socket
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

from model.interop import table as tables
from model.weights import by_name
from tests.model import tiny
from tests.model.interop import made_up

PROGRAM = """
import os, sys

os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
import jax

address, rank, source, target = sys.argv[1:]
jax.distributed.initialize(address, 2, int(rank))
from model import axes
from model.interop.files.folder import Folder
from model.interop.load import load, save
from tests.model import tiny
from tests.model.interop import made_up

read, rows = Folder.read, set()
def watched(self, name, index):
    rows.add((name, index[0].start, index[0].stop))
    return read(self, name, index)
Folder.read = watched
with axes.use_mesh(axes.make_mesh({"fsdp": 1, "tensor": 8})):
    model = load(made_up.abstract(tiny.LLAMA), made_up.LLAMA, Folder(source))
    save(model, made_up.LLAMA, target, {})
half = int(rank) * 32
assert ("model.embed_tokens.weight", half, half + 32) in rows, rows
assert ("model.layers.1.self_attn.q_proj.weight", half, half + 32) in rows, rows
"""


def test_each_reads_its_part_and_both_write_one_folder(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        name: theirs.shape
        for name, theirs in tables.expected(made_up.LLAMA, by_name(made_up.abstract(tiny.LLAMA))).items()
    }
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(rank), str(tmp_path), str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-3000:]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
