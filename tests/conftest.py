"""Settings that all tests share. They must be in the environment before jax is imported.

The CPU counts as eight devices, so that meshes can be tested. Compiled programs are cached between runs. XLA's warnings
stay visible, because some tests read them.
"""

import gc
import os
import tempfile
from importlib import metadata
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
# The programs of launch/ turn the cache off when they are imported. Workers of pytest-xdist inherit that; undo it.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
# LLVM took most of the tests' time. Turning its optimizations off halves that time, and the older emitters of jaxlib
# 0.10 halve it again (jaxlib 0.12 has none). XLA's own passes over a program stay the same.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "
    + os.environ.setdefault("TESTS_XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    + " --xla_force_host_platform_device_count=8"
)
# In jaxlib 0.12, a collective that waits holds a thread of XLA's pool, which has one for each core or device. A ring in
# a pipeline has several under way on every device, and blocks all threads for good. NPROC sets the size of the pool.
if metadata.version("jaxlib") >= "0.12":
    os.environ.setdefault("NPROC", "64")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".cache" / "jax_tests"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

pytest_plugins = ["tests.needs", "tests.fast"]

# torch, transformers and jax hold millions of objects. By default, Python walks over all of them so often that it takes
# a twentieth of the tests' time.
gc.set_threshold(30_000, 20, 50)

jax.devices()  # starts the backend with these settings, so that a later import from launch/ cannot change them


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """Puts the files that tests make with tempfile into pytest's folder, which keeps only the last three runs."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("files"))


@pytest.fixture
def compiled_afresh():
    """Turns the compilation cache off for one test, because a program from the cache prints no warnings."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def pytest_addoption(parser):
    parser.addoption("--all-families", action="store_true", help="vary config.json of every family, not only of some")
    parser.addoption("--kills", type=int, default=5, help="number of kills in tests/launch/training/test_kills.py")
