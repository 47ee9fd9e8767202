"""The settings that programs make before jax is imported; each test starts a new process to see them."""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.program import runtime

ROOT = Path(__file__).resolve().parents[3]


def environment(kind: str, **variables: str) -> dict[str, str]:
    """Returns os.environ of a process after configure(kind)."""
    code = (
        f"from launch.program import runtime; runtime.configure({kind!r}); "
        "import json, os; print(json.dumps(dict(os.environ)))"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "JAX"))}
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.check_output(command, cwd=ROOT, env=inherited | {"JAX_PLATFORMS": "cpu"} | variables))


def test_variables_of_the_user_are_kept():
    seen = environment("training", JAX_COMPILATION_CACHE_DIR="/elsewhere", XLA_FLAGS="--xla_cpu_use_onednn=false")
    assert seen["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"
    assert seen["XLA_FLAGS"].split()[0] == "--xla_cpu_use_onednn=false"
    assert seen["XLA_FLAGS"].count("--xla_cpu_use_onednn") == 1


@pytest.mark.parametrize(("platforms", "variable"), [("cuda", "XLA_FLAGS"), ("tpu", "LIBTPU_INIT_ARGS")])
def test_flags_of_the_user_replace_those_for_accelerators(platforms, variable):
    mine = environment("training", JAX_PLATFORMS=platforms)[variable].split()
    assert mine and all(re.fullmatch(r"--xla_\w+=\w+", flag) for flag in mine)
    assert len({flag.split("=")[0] for flag in mine}) == len(mine)
    name = mine[0].split("=")[0]
    chosen = environment("training", JAX_PLATFORMS=platforms, **{variable: f"--xla_dump_to=/tmp {name}=false"})
    assert chosen[variable].split() == ["--xla_dump_to=/tmp", f"{name}=false", *mine[1:]]
    other = {"XLA_FLAGS", "LIBTPU_INIT_ARGS"} - {variable}
    assert not other & {*environment("training", JAX_PLATFORMS=platforms)}
    assert variable not in environment("", JAX_PLATFORMS=platforms)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_libtpu_installed_for_planning_is_silent(monkeypatch):
    """jax does not load it, so it prints nothing and spends no seconds looking for a TPU."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if runtime.platform() != "cpu":
        pytest.skip("there is an accelerator")
    code = "from launch.program import runtime; runtime.configure(); import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_this_jaxlib_knows_the_flags_for_gpus():
    """jaxlib parses the flags of all platforms, and ends the process if it does not know one."""
    flags = environment("training", JAX_PLATFORMS="cuda")["XLA_FLAGS"]
    code = "import jax; jax.devices()"
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    for more, known in (("", True), (" --xla_gpu_of_no_release=true", False)):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=clean | {"XLA_FLAGS": flags + more}, capture_output=True, text=True)
        assert (done.returncode == 0) == known, done.stderr
    unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", done.stderr)[1]
    assert unknown.split() == ["--xla_gpu_of_no_release=true"]


def test_flags_are_set_for_training_with_new_releases_only(monkeypatch):
    assert "XLA_FLAGS" not in environment("")
    for release, flags in (("0.10.2", None), ("0.12.0.1", runtime.ENVIRONMENT[0][3]["XLA_FLAGS"])):
        for name in ("XLA_FLAGS", "JAX_ENABLE_COMPILATION_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name, release=release: release)
        monkeypatch.setattr(runtime, "_configure_allocator", lambda: None)
        runtime.configure("training")
        assert os.environ.get("XLA_FLAGS") == flags


def test_matmuls_in_a_loop_are_right_with_the_flags_for_training():
    """With XLA's oneDNN fusions of jax 0.12 they had errors as large as the values, without any warning."""
    code = """
from launch.program import runtime
runtime.configure("training")
import jax, jax.numpy as jnp, numpy as np
a, b, c = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate([(4, 32, 3), (4, 3, 48), (4, 32, 48)]))
for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.2)):
    layer = lambda args: args[2] + 2 * jnp.einsum("dr,rf->df", *args[:2], precision="highest")
    found = jax.jit(lambda *args: jax.lax.map(layer, args))(*(jnp.asarray(x, dtype) for x in (a, b, c)))
    np.testing.assert_allclose(np.asarray(found, np.float32), c + 2 * np.einsum("ldr,lrf->ldf", a, b), atol=tolerance)
"""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    """The second use of 256 MB gives no page faults; by default every page faults again."""
    code = """
import resource, sys
from launch.program import runtime
if sys.argv[1] == "yes":
    runtime.configure()
import numpy as np
faults = []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 28, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""
    run = lambda word: subprocess.check_output([sys.executable, "-c", code, word], cwd=ROOT, text=True).split()
    assert int(run("yes")[1]) < 100
    assert int(run("no")[1]) > 100  # else the test could not fail


@pytest.mark.parametrize(
    ("wanted", "expected"), [("cpu", "cpu"), ("cuda", "gpu"), ("rocm,cpu", "gpu"), ("tpu,cpu", "tpu")]
)
def test_platform(wanted, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", wanted)
    assert runtime.platform() == expected
