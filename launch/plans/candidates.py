"""Makes plans, each in a process of its own (launch/plans/child.py), and searches for the best one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from launch.program import runtime
from launch.program.checking import ConfigError, checking
from model.config import CHOICES
from train.planning import page, targets

_INVOLUNTARY = "Involuntary full rematerialization"


def environment(target: targets.Target) -> dict[str, str]:
    """Returns the environment of the process that compiles. It runs on this machine's CPU, with the compiler flags that
    training on the target has."""
    platform = target.chip.platform
    env = os.environ | runtime.settings(platform, "training") | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
    add = lambda flag: {"XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} --{flag}".strip()}
    if platform == "cpu":
        return env | add(f"xla_force_host_platform_device_count={target.devices}")
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # jax could write programs for absent devices, but not read them
    if platform == "gpu":
        return env | add("xla_gpu_autotune_level=0")  # there is no GPU to time kernels on
    # By default libtpu asks the metadata server for the TPU's type. These values avoid that; topologies ignore them.
    names = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
    return env | names | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def plan(config: ConfigDict, target: targets.Target, mesh: dict[str, int]) -> dict:
    """Returns a plan, the result of child.found in a process of its own.

    Args:
      config: of the run.
      target: the devices to plan for.
      mesh: {axis: size}.

    Raises:
      ConfigError: the config can't be run on the target, or the compiler crashed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        name = f"{target.name}:{'x'.join(map(str, target.shape))}"
        job = {"config": config.to_dict(), "target": name, "slices": target.slices, "mesh": mesh, "out": str(out)}
        done = subprocess.run(
            [sys.executable, "-m", "launch.plans.child"],
            input=json.dumps(job).encode(),
            env=environment(target),
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
        )
        messages = done.stderr.decode(errors="replace")
        if not out.exists():
            raise ConfigError(_died(done.returncode, messages))
        found = json.loads(out.read_text())
    if "mistake" in found:
        raise ConfigError(found["mistake"])
    if times := messages.count(_INVOLUNTARY):
        found["notes"].append(f"{_INVOLUNTARY} in {times} places: arrays are gathered completely to be sharded anew")
    return found


def _died(code: int, messages: str) -> str:
    """Returns the error message for a compiler that crashed."""
    why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    killed = " Perhaps this machine has too little memory for the compiler." if code == -signal.SIGKILL else ""
    lines = messages.splitlines()
    # If a check of the compiler failed, only its message is shown, because the stack trace after it has only addresses.
    fatal = [line for line in lines if line.startswith("F") and "Check failed" in line]
    last = "\n".join(fatal or lines[-15:])
    return f"the process of the compiler ended with {why}.{killed} Its last messages:\n{last}"


def mesh_of(text: str, config: ConfigDict) -> dict[str, int]:
    """Parses --mesh; returns {axis: size}, or config.mesh if `text` is empty."""
    if not text:
        return dict(config.mesh)
    with checking("--mesh"):
        try:
            shape = {name.strip(): int(size) for name, size in (part.split("=") for part in text.split(","))}
        except ValueError:
            raise ValueError(f"{text!r} is not of the form fsdp=16,tensor=4") from None
        return {"data": -1} | shape


def policies(remat: str) -> tuple[str, ...]:
    """Returns the remat policy `remat`, followed by those that keep fewer activations."""
    return CHOICES["remat"][CHOICES["remat"].index(remat) :]


def with_remat(config: ConfigDict, remat: str) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.remat = remat
    return config


def pages(config: ConfigDict, target: targets.Target, mesh: dict[str, int], words: str, tokens: float):
    """Yields the page of a plan; if it does not fit, also what other remat policies need, and a page of one that fits.

    Args:
      config, target, mesh: see `plan`.
      words: name of what is planned, for the first line.
      tokens: see page.page.
    """
    policy, *others = policies(config.model.remat)
    first = plan(config, target, mesh)
    yield page.page(first, target, words, policy, tokens)
    if "out_of_memory" not in first:
        return
    for policy in others:
        found = plan(with_remat(config, policy), target, mesh)
        if "out_of_memory" not in found:
            peak = found["memory"]["peak"] / targets.GIB
            yield f"\n{page.verdict(first)}; remat={policy} fits at {peak:.1f}. With it:\n"
            yield page.page(found, target, words, policy, tokens)
            return
        yield f"remat={policy}: {page.verdict(found)}"
    yield "No remat policy fits: use more chips, a larger fsdp or tensor axis, or a smaller config.batch_size."


def search(
    config: ConfigDict,
    target: targets.Target,
    fixed: dict[str, int],
    tries: int,
    observe: Callable[[tuple[str, str, dict]], None] = lambda _: None,
) -> list[tuple[str, str, dict]]:
    """Tries meshes and remat policies; returns (mesh, remat, plan) of each, the fastest that fit first.

    The search varies the axes data, fsdp and tensor, the axis expert if the model has experts, and those that `fixed`
    leaves open. For each mesh it stops at the first remat policy that fits, because the next ones recompute more.

    Args:
      config, target: see `plan`.
      fixed: {axis: size} of axes that are not varied; size -1 leaves an axis open.
      tries: how many programs are compiled at most.
      observe: called with each result as soon as it is known.
    """
    searched = ("data", "fsdp", *(("expert",) if config.model.get("experts") else ()), "tensor")
    free = [name for name in dict.fromkeys((*searched, *fixed)) if fixed.get(name, -1) == -1]
    tried, compiled = [], 0
    rest = target.devices
    for size in fixed.values():
        rest //= max(1, size)
    for sizes in _divided(rest, len(free)):
        mesh = {name: size for name, size in fixed.items() if size != -1} | dict(zip(free, sizes, strict=True))
        words = ",".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "data=1"
        for remat in policies("none"):
            if compiled >= tries:
                break
            try:
                found = plan(with_remat(config, remat), target, mesh)
            except ConfigError as error:
                tried.append((words, remat, {"mistake": str(error)}))
                break  # the model can't be sharded over this mesh, whatever the policy
            compiled += 1
            tried.append((words, remat, found))
            observe(tried[-1])
            if "out_of_memory" not in found:
                break
    fits = lambda row: "times" in row[2] and "out_of_memory" not in row[2]
    return sorted(tried, key=lambda row: (not fits(row), row[2]["times"]["step"] if fits(row) else 0))


def _divided(devices: int, parts: int) -> list[tuple[int, ...]]:
    """Returns the ways to split devices over axes, with powers of two; those with small last axes come first, because
    the last axes communicate most."""
    if parts == 1:
        return [(devices,)]
    powers = [2**n for n in range(devices.bit_length()) if devices % 2**n == 0]
    found = [(*rest, last) for last in powers for rest in _divided(devices // last, parts - 1)]
    return sorted(found, key=lambda sizes: (sizes[-1], sizes[0]))
