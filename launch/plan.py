"""Plan a training run for accelerators that are not here: does it fit, what does it send, how long would it take.

    python -m launch.plan --config=configs/pretrain_decoder.py:llama3_8b --target=v5p:4x4x4 --mesh=fsdp=16,tensor=4
    python -m launch.plan --config=configs/pretrain_decoder.py:llama3_8b --target=h100:2x8 --search

The real train step is compiled for the target in a process of its own; compilers for absent accelerators come with
`pip install --no-deps -r launch/requirements-planner.txt`.
"""

if __package__ in (None, ""):  # as a script, launch/ would be the first place where modules are looked for
    raise SystemExit("start it from the checkout as: python -m launch.plan")

from launch import runtime

runtime.configure()

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch.checking import ConfigError, checking
from model.config import CHOICES
from train.planning import page, targets

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon.")
_TARGET = flags.DEFINE_string("target", None, "What to plan for: v4, v5e, v5p, v6e:TOPOLOGY, h100:NODESxGPUS, cpu:N.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of a TPU target, connected by the data center's network.")
_MESH = flags.DEFINE_string("mesh", "", "Sizes of axes, as fsdp=16,tensor=4; the rest is data. Empty: config.mesh.")
_TOKENS = flags.DEFINE_float("tokens", 0, "Budget of training tokens; 0: 20 a parameter (Chinchilla).", lower_bound=0)
_SEARCH = flags.DEFINE_bool("search", False, "Try other meshes and remat policies, and rank those that fit.")
_TRIES = flags.DEFINE_integer("tries", 12, "Programs that --search compiles at most.", lower_bound=1)

_SEARCHED = ("data", "fsdp", "tensor")  # axes among which --search divides the devices that --mesh leaves
_INVOLUNTARY = "Involuntary full rematerialization"


def environment(target: targets.Target) -> dict[str, str]:
    """Of the process that compiles; the program itself runs on this machine's CPU."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
    flags_of = lambda name, value: {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --{name}={value}".strip()}
    if target.chip.platform == "cpu":
        return env | flags_of("xla_force_host_platform_device_count", target.devices)
    env["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    if target.chip.platform == "gpu":
        return env | flags_of("xla_gpu_autotune_level", 0)  # there is no GPU to time kernels on
    # libtpu asks the machine's metadata server what it runs on, unless told; topologies do not depend on the answer.
    names = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
    return env | names | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def plan(config: ConfigDict, target: targets.Target, mesh: dict[str, int]) -> dict:
    """What launch/planning.py finds, in a process of its own.

    Raises:
      ConfigError: a mistake in what was asked for, or the compiler died.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        name = f"{target.name}:{'x'.join(map(str, target.shape))}"
        job = {"config": config.to_dict(), "target": name, "slices": target.slices, "mesh": mesh, "out": str(out)}
        done = subprocess.run(
            [sys.executable, "-m", "launch.planning"],
            input=pickle.dumps(job),
            env=environment(target),
            cwd=Path(__file__).resolve().parent.parent,
            capture_output=True,
        )
        messages = done.stderr.decode(errors="replace")
        if not out.exists():
            raise ConfigError(_died(done.returncode, messages))
        found = json.loads(out.read_text())
    if "mistake" in found:
        raise ConfigError(found["mistake"])
    if times := messages.count(_INVOLUNTARY):
        found["notes"].append(f"{_INVOLUNTARY} in {times} places: arrays are gathered whole to be split anew")
    return found


def _died(code: int, messages: str) -> str:
    why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    killed = " Perhaps this machine's memory was too small for the compiler." if code == -signal.SIGKILL else ""
    lines = messages.splitlines()
    fatal = [line for line in lines if line.startswith("F") and "Check failed" in line]  # before a stack of addresses
    last = "\n".join(fatal or lines[-15:])
    return f"the compiler's process ended with {why}.{killed} It said last:\n{last}"


def mesh_of(text: str, config: ConfigDict) -> dict[str, int]:
    if not text:
        return dict(config.mesh)
    with checking("--mesh"):
        try:
            shape = {name.strip(): int(size) for name, size in (part.split("=") for part in text.split(","))}
        except ValueError:
            raise ValueError(f"{text!r} is not of the form fsdp=16,tensor=4") from None
        return {"data": -1} | shape


def policies(remat: str) -> tuple[str, ...]:
    """`remat` and those that keep less."""
    return CHOICES["remat"][CHOICES["remat"].index(remat) :]


def with_remat(config: ConfigDict, remat: str) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.remat = remat
    return config


def search(config: ConfigDict, target: targets.Target, fixed: dict[str, int]) -> list[tuple[str, str, dict]]:
    """(mesh, remat, found) of what was tried, those that fit first, the fastest of them first.

    Of each mesh the first remat policy that fits: one that keeps less computes more.
    """
    free, tried, compiled = [name for name in _SEARCHED if fixed.get(name, -1) == -1], [], 0
    rest = target.devices
    for size in fixed.values():
        rest //= max(1, size)
    for sizes in _divided(rest, len(free)):
        mesh = {name: size for name, size in fixed.items() if size != -1} | dict(zip(free, sizes, strict=True))
        words = ",".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "data=1"
        for remat in policies("none"):
            if compiled >= _TRIES.value:
                break
            try:
                found = plan(with_remat(config, remat), target, mesh)
            except ConfigError as error:
                tried.append((words, remat, {"mistake": str(error)}))
                break  # of a mesh that cannot hold the model, whatever the policy
            compiled += 1
            tried.append((words, remat, found))
            print(page.table(tried[-1:], target).splitlines()[-1], file=sys.stderr, flush=True)
            if "out_of_memory" not in found:
                break
    fits = lambda row: "times" in row[2] and "out_of_memory" not in row[2]
    return sorted(tried, key=lambda row: (not fits(row), page.step_seconds(row[2]) if fits(row) else 0))


def _divided(devices: int, parts: int) -> list[tuple[int, ...]]:
    """Products of powers of two; the last ones small, as those axes talk most."""
    if parts == 1:
        return [(devices,)]
    powers = [2**n for n in range(devices.bit_length()) if devices % 2**n == 0]
    found = [(*rest, last) for last in powers for rest in _divided(devices // last, parts - 1)]
    return sorted(found, key=lambda sizes: (sizes[-1], sizes[0]))


def main() -> None:
    config, words = _CONFIG.value, flags.FLAGS["config"].config_filename
    with checking("--target"):
        target = targets.parse(_TARGET.value, _SLICES.value)
    mesh = mesh_of(_MESH.value, config)
    if _SEARCH.value:
        if not target.chip.flops:
            raise ConfigError(f"--search ranks by estimated time, and of {target.name} no rates are published")
        rows = search(config, target, mesh if _MESH.value else {})
        print(f"{words} on {target}, {config.batch_size} x {config.data.seq_len} tokens a step")
        print(page.table(rows, target))
        return
    remat = config.model.remat
    found = plan(config, target, mesh)
    print(page.page(found, target, words, remat, _TOKENS.value))
    if "out_of_memory" not in found:
        return
    for policy in policies(remat)[1:]:
        other = plan(with_remat(config, policy), target, mesh)
        if "out_of_memory" not in other:
            peak = other["memory"]["peak"] / targets.GIB
            print(f"\n{page.verdict(found)}; remat={policy} fits at {peak:.1f}. With it:\n")
            print(page.page(other, target, words, policy, _TOKENS.value))
            return
        print(f"remat={policy}: {page.verdict(other)}")
    print("No remat policy fits: take more chips, a larger fsdp or tensor, or a smaller config.batch_size.")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "target"])
    runtime.run(main)
