"""What every test runs under; set before jax is imported.

Eight devices, made of the CPU, so that meshes can be tested. Programs are kept between runs. Warnings of XLA are shown,
because some tests read them.
"""

import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
# What a program of launch/ sets when it is imported is not for tests, but workers of xdist inherit it.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
# Most of the tests' time was LLVM's. Not to optimise halves it, and the older emitters of jaxlib 0.10 halve it again
# (0.12 has none); what XLA does to a program before that stays the same.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "
    + os.environ.setdefault("TESTS_XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".cache" / "jax_tests"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

pytest_plugins = ["tests.needs", "tests.fast"]

jax.devices()  # starts the backend with these settings: importing a program of launch/ later adds none of its own


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """Puts what tests make with tempfile into pytest's own folder, which keeps the last three runs and no more."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("files"))


@pytest.fixture
def compiled_afresh():
    """A program from the cache prints no warning."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def pytest_addoption(parser):
    parser.addoption("--all-families", action="store_true", help="walk through config.json of all families")
    parser.addoption("--kills", type=int, default=5, help="how often tests/launch/training/test_kills.py kills its run")
