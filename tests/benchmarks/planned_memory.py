"""Compares planned and measured peak memory of a training step on this machine's CPU.

    python -m tests.benchmarks.planned_memory

Planned is what `launch.plan --target=cpu:1` says. Measured is the process's peak during two steps minus what it held
before the state was made, as the kernel counts it. The process uses glibc's own allocator, because the one that
launch/program/runtime.py sets does not return freed memory.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

MODELS = ("small", "llama", "gpt2")


def status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def config_of(name: str):
    from configs import benchmark

    config = benchmark.get_config(name)
    config.model.dtype, config.batch_size = "float32", 8
    return config


def measure(name: str) -> None:
    """Measures one model and prints bytes; runs in a process of its own."""
    import jax
    import numpy as np

    from data.batch import DTYPES
    from launch.run import build, models
    from model import architectures, axes
    from train import state

    config = config_of(name)
    model, mesh = models.model_config(config), axes.make_mesh()
    tx = build.optimizer(config, model)
    step, _ = build.steps(config, tx, models.objective(config))
    batch = {name: np.ones((config.batch_size, config.data.seq_len), dtype) for name, dtype in DTYPES.items()}
    make = lambda rngs: architectures.make(model, rngs)
    with axes.use_mesh(mesh):
        shapes = {
            key: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=axes.batch_sharding(mesh)) for key, a in batch.items()
        }
        compiled = step.lower(state.abstract(make, tx), shapes).compile()
        ctypes.CDLL(None).malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's peak counter
        train_state, batch = state.create(make, tx, 0), build.put(mesh)(batch)
        jax.block_until_ready(train_state)
        for _ in range(2):
            train_state, metrics = compiled(train_state, batch)
            jax.block_until_ready(metrics)
    print(json.dumps(status("VmHWM") - before))


def main() -> None:
    if len(sys.argv) > 1:
        return measure(sys.argv[1])
    from launch.plans import candidates
    from train.planning import targets

    print("| model | FLOPs per step | planned MiB | measured MiB | measured / planned |")
    print("|---|---|---|---|---|")
    for name in MODELS:
        found = candidates.plan(config_of(name), targets.parse("cpu:1"), {"data": 1})
        command = [sys.executable, "-m", "tests.benchmarks.planned_memory", name]
        done = subprocess.run(
            command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True, check=True
        )
        measured, planned = json.loads(done.stdout) / 2**20, found["memory"]["peak"] / 2**20
        flops = found["flops"]["executed"] / 1e9
        print(f"| {name} | {flops:,.1f} G | {planned:,.0f} | {measured:,.0f} | {measured / planned:.2f} |")
    return None


if __name__ == "__main__":
    main()
