"""Eight virtual devices for every test, and the shared data for those that need them."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from pathlib import Path

import pytest

from experiments.shared import shared_folder

collect_ignore = ["weights/run_timm.py"]  # It is run by another Python.


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared data: set NFNETS_SHARED to the folder that holds them")
    return folder
