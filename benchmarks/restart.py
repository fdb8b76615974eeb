"""Measures how soon a killed run trains again, compared with its first start, as a line of JSON.

    python -m benchmarks.restart --config=nfnet_digits --rounds=3

starts the run with an empty cache of programs, kills it (SIGKILL) after its first checkpoint, and
starts it again. Both times are from the command to the first line of metrics. All figures are
medians of the rounds; ``ratio`` is the restart's time over the first start's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="nfnet_digits")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pairs = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append([_start(arguments.config, Path(folder)) for _ in range(2)])
    first, again = zip(*pairs, strict=True)
    figures = {
        "first_start_seconds": statistics.median(first),
        "restart_seconds": statistics.median(again),
        "ratio": statistics.median(later / first for first, later in pairs),
    }
    print(json.dumps({**vars(arguments), **figures, **machine.describe()}))


def _start(config: str, folder: Path) -> float:
    """Starts a run, kills it after a checkpoint, and returns the seconds until it trained."""
    run, before = folder / "run", _rows(folder / "run")
    flags = ["--config.log_every=1", "--config.checkpoint_every=10", "--config.eval_every=0"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", f"--config={config}", *flags, f"--workdir={run}"],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = None
    try:
        while seconds is None or not any(path.name.isdigit() for path in run.glob("checkpoints/*")):
            if process.poll() is not None:
                sys.exit(f"--config={config} ended by itself: give one that trains longer")
            if seconds is None and _rows(run) > before:
                seconds = time.perf_counter() - start
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return seconds


def _rows(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


if __name__ == "__main__":
    main()
