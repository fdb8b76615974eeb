import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import process

# What takes 64 MB and frees them, ten times in a thread; then the pages that the last time took.
PROGRAM = """
import concurrent.futures, resource, sys
import numpy as np
from experiments import process

if sys.argv[1] == "keep":
    process.keep_freed_memory()

def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with concurrent.futures.ThreadPoolExecutor(1) as pool:
    print([pool.submit(work).result() for _ in range(10)][-1])
"""


def pages(how: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
@pytest.mark.skipif(process.has_accelerators(), reason="with accelerators nothing is told")
@pytest.mark.skipif("MALLOC_ARENA_MAX" in os.environ, reason="MALLOC_ARENA_MAX is set")
def test_memory_that_was_freed_is_taken_again() -> None:
    whole = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert pages("keep") < whole / 100
    # A page of this may be a huge one.
    assert pages("leave") > whole / 1000
    assert pages("keep", MALLOC_TRIM_THRESHOLD_="131072") > whole / 1000
