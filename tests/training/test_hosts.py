"""Several processes on one machine, as several hosts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.cifar10.processes import free_port

REPOSITORY = Path(__file__).parents[2]
CONFIG = """
from experiments import recipes

def get_config():
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    config.model.update({"depth": (1,), "width": (16,), "strides": (1,), "group_size": 8})
    config.update({"batch_size": 16, "num_steps": 12, "log_every": 2})
    config.update({"eval_every": 6, "checkpoint_every": 4, "look_every": 0})
    return config
"""


def start(folder: Path, workdir: Path, processes: int, *flags: str) -> list[subprocess.Popen[str]]:
    """Starts processes that train together, on four devices in all."""
    config = folder / "tiny.py"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "experiments.run", f"--config={config}", *flags]
    port = free_port()
    hosts = []
    for index in range(processes):
        together = [
            f"--coordinator_address=127.0.0.1:{port}",
            f"--num_processes={processes}",
            f"--process_id={index}",
        ]
        hosts.append(
            subprocess.Popen(
                [*command, f"--workdir={workdir}", *(together if processes > 1 else [])],
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return hosts


def finish(hosts: list[subprocess.Popen[str]]) -> list[str]:
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0] * len(hosts), outputs
    return outputs


def losses(workdir: Path) -> list[tuple[int, str, float]]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["split"], row["loss"]) for row in rows]


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder, folder / "run", 1))
    return folder / "run"


@pytest.mark.parametrize(
    ("processes", "on_device"),
    [
        (2, "no"),
        pytest.param(2, "yes", marks=pytest.mark.slow),
        pytest.param(4, "no", marks=pytest.mark.slow),
    ],
)
def test_hosts_together_train_as_one(
    processes: int, on_device: str, alone: Path, tmp_path: Path
) -> None:
    flag = f"--config.data.on_device={on_device}"
    outputs = finish(start(tmp_path, tmp_path / "run", processes, flag))
    assert f"4 x cpu on {processes} hosts, batch 16" in outputs[0]
    assert "step 12/12" in outputs[0]
    assert not any("step 12/12" in output for output in outputs[1:])
    ours, theirs = losses(tmp_path / "run"), losses(alone)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    assert [row[2] for row in ours] == pytest.approx([row[2] for row in theirs], rel=1e-5)
    assert summary(tmp_path / "run")["test"]["examples"] == 360


def latest(workdir: Path) -> int:
    return max((int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()), default=0)


def wait_for_checkpoint(workdir: Path, after: int, host: subprocess.Popen[str]) -> None:
    while latest(workdir) <= after:
        assert host.poll() is None, host.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_dead_host_ends_the_others_and_all_go_on_together(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    long = ("--config.num_steps=4000", "--config.eval_every=0", "--config.log_every=1000")
    hosts = start(tmp_path, workdir, 2, *long)
    wait_for_checkpoint(workdir, 4, hosts[0])
    hosts[1].kill()
    began = time.monotonic()
    output = hosts[0].communicate(timeout=90)[0]
    assert hosts[0].returncode not in (0, None)
    assert time.monotonic() - began < 60
    assert "another task died" in output, output
    assert "most recent call first" not in output

    saved = latest(workdir)
    hosts = start(tmp_path, workdir, 2, *long)
    wait_for_checkpoint(workdir, saved, hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    outputs = [host.communicate(timeout=60)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [143, 143], outputs
    assert f"resumed at step {saved}" in outputs[0]
    assert all("saved at step" in output for output in outputs)
