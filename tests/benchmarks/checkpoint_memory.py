"""Measures peak memory of loading a checkpoint folder: makes one like LLaMA's and loads it in a fresh process.

    python -m tests.benchmarks.checkpoint_memory --file_dtype=bfloat16 --param_dtype=float32 --layers=9 --devices=8

Prints JSON with sizes in MB. The peak is VmHWM: all resident pages since the start of the process, including
file-backed ones. Fails if the peak is more than 1.3 times the model. Needs Linux, and room for the checkpoint in the
temporary folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np

LLAMA = dict(vocab_size=32000, embed_dim=2048, num_heads=16, num_kv_heads=4, mlp_dim=5632, max_length=2048)


def write(path: Path, layers: int, dtype: np.dtype) -> None:
    from model.interop.files.writer import Writer

    d, f, kv = LLAMA["embed_dim"], LLAMA["mlp_dim"], LLAMA["embed_dim"] // 4
    shapes = {"model.embed_tokens": (32000, d), "model.norm": (d,), "lm_head": (32000, d)}
    for layer in range(layers):
        of = f"model.layers.{layer}."
        shapes |= {of + "input_layernorm": (d,), of + "post_attention_layernorm": (d,)}
        shapes |= {of + "self_attn.q_proj": (d, d), of + "self_attn.o_proj": (d, d)}
        shapes |= {of + "self_attn.k_proj": (kv, d), of + "self_attn.v_proj": (kv, d)}
        shapes |= {of + "mlp.gate_proj": (f, d), of + "mlp.up_proj": (f, d), of + "mlp.down_proj": (d, f)}
    shapes = {f"{name}.weight": (shape, dtype) for name, shape in shapes.items()}
    rng = np.random.default_rng(0)
    with Writer(path, shapes, {}, max_shard_bytes=500_000_000) as writer:
        for name, (shape, _) in shapes.items():
            writer.write(name, rng.random(shape, np.float32).astype(dtype))


def memory() -> dict[str, float]:
    """Returns the resident memory of this process in MB."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(fields[key].split()[0]) * 1.024e-3 for key in ("VmRSS", "VmHWM", "RssAnon", "RssFile")}


def measure(folder: str, layers: int, param_dtype: str, devices: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    from model import axes
    from model.architectures import Decoder
    from model.config import ModelConfig
    from model.interop.files.folder import Folder
    from model.interop.load import load
    from model.interop.tables import llama
    from train import state

    config = ModelConfig(**LLAMA, num_layers=layers, param_dtype=param_dtype)
    samples, stop = [], threading.Event()

    def sample():
        while not stop.wait(0.005):
            samples.append(memory())

    with axes.use_mesh(axes.make_mesh({"fsdp": devices})):
        abstract = state.abstract_model(lambda rngs: Decoder(config, rngs))
        before = memory()
        threading.Thread(target=sample).start()
        start = time.perf_counter()
        model = load(abstract, llama.table(config), Folder(folder))
        seconds = time.perf_counter() - start
        stop.set()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model)) / 1e6
    found = dict(model=size, before=before["VmRSS"], peak=memory()["VmHWM"], after=memory()["VmRSS"])
    found |= {f"peak_{key}": max(sample[key] for sample in samples) for key in ("RssAnon", "RssFile")}
    found |= dict(ratio=found["peak"] / size, ratio_of_growth=(found["peak"] - found["before"]) / size, seconds=seconds)
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))
    sys.exit(found["ratio"] > 1.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--file_dtype", default="float32")
    parser.add_argument("--param_dtype", default="float32")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--measure", help="load this folder in this process, and measure")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.layers, args.param_dtype, args.devices)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        write(path, args.layers, np.dtype(getattr(ml_dtypes, args.file_dtype, None) or args.file_dtype))
        command = [sys.executable, "-m", "tests.benchmarks.checkpoint_memory", f"--measure={path}"]
        command += [f"--layers={args.layers}", f"--param_dtype={args.param_dtype}", f"--devices={args.devices}"]
        sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
