import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import process

# Allocates and frees 64 MB in a thread ten times; prints the page faults of the last time.
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

# Whether Linux was asked for huge pages where 64 MB are taken.
HUGE_PROGRAM = """
import re
from pathlib import Path
import numpy as np
from experiments import process

process.keep_freed_memory()
array = np.ones(2**26, np.uint8)
place = array.ctypes.data + 2**25
for line in Path("/proc/self/smaps").read_text().splitlines():
    if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
        here = int(found[1], 16) <= place < int(found[2], 16)
    elif here and line.startswith("VmFlags:"):
        print(int("hg" in line.split()))
"""

pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc"),
    pytest.mark.skipif(process.has_accelerators(), reason="with accelerators nothing is set"),
    pytest.mark.skipif("MALLOC_ARENA_MAX" in os.environ, reason="MALLOC_ARENA_MAX is set"),
]


def run(program: str, *arguments: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    whole = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert run(PROGRAM, "keep") < whole / 100
    # Some of these pages may be huge.
    assert run(PROGRAM, "leave") > whole / 1000
    assert run(PROGRAM, "keep", MALLOC_TRIM_THRESHOLD_="131072") > whole / 1000


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages to ask for"
)
def test_pages_are_huge() -> None:
    # NumPy asks for some too, unless told not to.
    assert run(HUGE_PROGRAM, NUMPY_MADVISE_HUGEPAGE="0") == 1
    assert run(HUGE_PROGRAM, MALLOC_MMAP_MAX_="0", NUMPY_MADVISE_HUGEPAGE="0") == 0
