"""Eight virtual devices for every test, and the shared data for those that need them."""

import atexit
import os
import shutil
import tempfile

# Programs that run once are compiled without LLVM's optimizations; XLA's own are as ever.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

# Many tests compile the same small programs: they do so once a session, in all its processes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nfnets_jax_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from pathlib import Path

import pytest

from benchmarks.shared_folder import shared_folder

collect_ignore = ["weights/run_timm.py"]  # It is run by another Python.


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared data: set NFNETS_SHARED to the folder that holds them")
    return folder
