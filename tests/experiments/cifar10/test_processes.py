import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import process
from experiments.cifar10 import processes as launcher
from nfnets_jax.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]

# Every process of it prints its place among them, and the cores that it is pinned to.
PROGRAM = """
import os, sys
os.sched_getaffinity = lambda pid: {0, 1, 2}
placed = []
os.sched_setaffinity = lambda pid, cores: placed.append((pid == os.getpid(), sorted(cores)))
from experiments.cifar10 import processes
if processes.is_follower():
    print("follower", sys.argv[2:], os.environ["XLA_FLAGS"])
else:
    print(processes.start(int(sys.argv[1]), batch_size=4), placed)
"""


def output(processes: int, xla_flags: str, tmp_path: Path) -> list[str]:
    """Returns the lines that the program and its followers print."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, str(processes)],
        env={**os.environ, "XLA_FLAGS": xla_flags, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(process.has_accelerators(), reason="with accelerators there is one process")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no process keeps to a core here")
@pytest.mark.parametrize(("processes", "expected"), [(3, 3), (2, 2), (0, 2)])
def test_each_core_has_a_process(processes: int, expected: int, tmp_path: Path) -> None:
    lines = sorted(output(processes, "--xla_cpu_enable_fast_math=false", tmp_path))
    assert len(lines) == expected
    (first,) = (line for line in lines if line.startswith("Membership"))
    lines.remove(first)
    assert f"num_processes={expected}, process_id=0" in first
    for index in range(1, expected):
        assert f"(False, [{index}])" in first
        assert any(f"--process_id={index}" in line for line in lines)
    assert first.endswith("(True, [0])]")
    for line in lines:
        assert line.endswith("--xla_cpu_enable_fast_math=false --xla_cpu_multi_thread_eigen=false")


@pytest.mark.parametrize(
    ("processes", "xla_flags"), [(1, ""), (2, "--xla_force_host_platform_device_count=2")]
)
def test_a_process_stays_alone_if_the_user_says_so(
    processes: int, xla_flags: str, tmp_path: Path
) -> None:
    assert output(processes, xla_flags, tmp_path) == ["None []"]


def test_processes_are_counted_from_zero() -> None:
    with pytest.raises(InputError, match="-1 processes; it takes 1 or more, or 0 for one a core"):
        launcher.start(-1, batch_size=4)


@pytest.mark.slow
@pytest.mark.skipif(process.has_accelerators(), reason="with accelerators there is one process")
def test_followers_train_with_the_first_process_which_alone_reports(tmp_path: Path) -> None:
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    command = [sys.executable, "-m", "experiments.cifar10.train", f"--config={config}"]
    command += [f"--workdir={tmp_path / 'run'}", "--cpu_processes=2"]

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *flags],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    refused = run("--config.model.name=nfnet_f9")
    assert refused.returncode == 1
    assert refused.stdout.count("nfnet_f9") == 1
    trained = run()
    assert trained.returncode == 0
    assert "2 x cpu on 2 hosts, batch 16" in trained.stdout
    assert trained.stdout.count("test top-1") == 1


CONFIG = """
from experiments import recipes


def get_config():
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    config.model.update({"depth": (1,), "width": (16,), "strides": (1,), "group_size": 8})
    config.update({"batch_size": 16, "num_steps": 3, "log_every": 3, "eval_every": 3})
    config.update({"checkpoint_every": 0, "look_every": 0})
    return config
"""
