"""Runs commands that compile for accelerators, each in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="no compiler for GPUs: make plan-test installs it",
)
needs_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no compiler for TPUs: make plan-test installs it",
)


def run(*command: str) -> list[dict[str, Any]]:
    """Runs a Python module, and returns the JSON objects that it prints, one a line."""
    # The flags of the other tests are not those of a user.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def plan(config: str, target: str, hlo: Path | str = "", **settings: Any) -> dict[str, Any]:
    """Returns the figures of ``experiments.plan``; ``settings`` have ``__`` for dots."""
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in settings.items()]
    flags += [f"--hlo={hlo}"] if hlo else []
    command = ["experiments.plan", f"--config={config}", f"--target={target}", "--json"]
    (figures,) = run(*command, *flags)
    return figures
