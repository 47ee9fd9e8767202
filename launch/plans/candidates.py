"""Plans, each made in a process of its own (launch/plans/child.py), and the search for the best one."""

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
    """Of the process that compiles, with the compiler's flags that training on the target has; the process itself runs
    on this machine's CPU."""
    platform = target.chip.platform
    env = os.environ | runtime.settings(platform, "training") | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
    add = lambda flag: {"XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} --{flag}".strip()}
    if platform == "cpu":
        return env | add(f"xla_force_host_platform_device_count={target.devices}")
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # programs for absent devices are written to it and can't be read
    if platform == "gpu":
        return env | add("xla_gpu_autotune_level=0")  # there is no GPU to time kernels on
    # libtpu asks the machine's metadata server what it runs on, unless told; topologies do not depend on the answer.
    names = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
    return env | names | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def plan(config: ConfigDict, target: targets.Target, mesh: dict[str, int]) -> dict:
    """What launch/plans/child.py finds, in a process of its own.

    Raises:
      ConfigError: a mistake in what was asked for, or the compiler died.
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


def pages(config: ConfigDict, target: targets.Target, mesh: dict[str, int], words: str, tokens: float):
    """Yields the page of a plan; where it does not fit, what other remat policies need, and the page of one that fits.

    Args:
      words: what is planned.
      tokens: as of page.page.
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
    yield "No remat policy fits: take more chips, a larger fsdp or tensor, or a smaller config.batch_size."


def search(
    config: ConfigDict,
    target: targets.Target,
    fixed: dict[str, int],
    tries: int,
    observe: Callable[[tuple[str, str, dict]], None] = lambda _: None,
) -> list[tuple[str, str, dict]]:
    """(mesh, remat, found) of what was tried, those that fit first, the fastest of them first.

    Of each mesh the first remat policy that fits: one that keeps less computes more.

    Devices are divided among data, fsdp, tensor, with experts among expert too, and among what `fixed` leaves open.

    Args:
      fixed: sizes of axes that stay; -1 leaves one open.
      tries: programs that are compiled at most.
      observe: of each as soon as it is known.
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
                break  # of a mesh that cannot hold the model, whatever the policy
            compiled += 1
            tried.append((words, remat, found))
            observe(tried[-1])
            if "out_of_memory" not in found:
                break
    fits = lambda row: "times" in row[2] and "out_of_memory" not in row[2]
    return sorted(tried, key=lambda row: (not fits(row), row[2]["times"]["step"] if fits(row) else 0))


def _divided(devices: int, parts: int) -> list[tuple[int, ...]]:
    """Products of powers of two; the last ones small, as those axes talk most."""
    if parts == 1:
        return [(devices,)]
    powers = [2**n for n in range(devices.bit_length()) if devices % 2**n == 0]
    found = [(*rest, last) for last in powers for rest in _divided(devices // last, parts - 1)]
    return sorted(found, key=lambda sizes: (sizes[-1], sizes[0]))
