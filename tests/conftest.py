"""Sets up eight virtual CPU devices for every test, and finds the sample data that some need."""

import atexit
import os
import shutil
import tempfile

# Most programs run once, so LLVM's optimizations are off; XLA's own stay on. A module that is not
# split compiles with a fifth less work.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + " --xla_cpu_parallel_codegen_split_count=1"
)

# Many tests compile the same small programs; all processes of a session share one cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nfnets_jax_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import experiments.cifar10  # noqa: F401, it registers nf_convnet
from benchmarks.shared_folder import shared_folder

collect_ignore = ["weights/run_timm.py"]  # A Python with torch and timm runs it.


@pytest.fixture(autouse=True)
def _free_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Frees the programs of a slow test: those of large networks take gigabytes."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Returns the folder of sample images and datasets; skips the test where it is absent."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("sample data are absent: set NFNETS_SHARED to their folder")
    return folder
