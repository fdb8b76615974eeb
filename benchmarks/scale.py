"""Tables what NFNets take on machines that nobody has rented yet, by ``experiments.plan``.

    python -m benchmarks.scale --batch=4096 --targets=v4:4x4x4,v5e:16x16,8xh100

Writes ``scale.json`` and ``scale.md`` to ``benchmarks/results`` after every row; rows that are
there already are kept. A row takes minutes: sizes of micro-batches are compiled until one fits.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks import compare, machine

_CONFIGS = ",".join(f"nfnet_f{index}" for index in range(7))
_HEADER = (
    "model",
    "target",
    "devices",
    "images a device",
    "at a time",
    "state and batch (GB)",
    "temporaries (GB)",
    "memory (GB)",
    "fits",
    "exchanged (GB)",
)


def main() -> None:
    """Plans all rows that are missing, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4096, help="images a step, on all devices")
    parser.add_argument("--configs", default=_CONFIGS)
    parser.add_argument("--targets", default="v4:4x4x4,v5e:16x16,8xh100")
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    file = arguments.out / "scale.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    done = {(row["model"], row["target"], row["batch_size"]) for row in rows}
    for target in arguments.targets.split(","):
        for config in arguments.configs.split(","):
            if (config, target, arguments.batch) in done:
                continue
            row = _plan(config, target, arguments.batch)
            if row is not None:
                rows.append({**row, **machine.describe()})
                file.write_text(json.dumps(rows, indent=1) + "\n")
                file.with_suffix(".md").write_text(table(rows))
                print(_line(row), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table in Markdown, with the conditions of the newest."""
    lines = [_line(row) for row in rows]
    heads = ["| " + " | ".join(_HEADER) + " |", "|" + " --- |" * len(_HEADER)]
    newest = rows[-1]
    conditions = ", ".join(newest[key] for key in ("date", "processor", "python", "jax"))
    return "\n".join([*heads, *lines, "", f"Compiled with: {conditions}.", ""])


def _plan(config: str, target: str, batch: int) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "experiments.plan", f"--config={config}", "--json"]
    command += [f"--target={target}", f"--config.batch_size={batch}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    print(f"{config} on {target}: {done.stderr.splitlines()[-1]}", flush=True)
    return None


def _line(row: dict[str, Any]) -> str:
    gigabytes = (
        row["argument_bytes"],
        row["temporary_bytes"],
        row["device_bytes"],
        row["collective_bytes"],
    )
    arguments, temporaries, memory, exchanged = (f"{size / 1e9:.2f}" for size in gigabytes)
    cells = (
        row["model"],
        row["target"],
        row["devices"],
        row["batch_size"] // row["devices"],
        row["micro_batch_size"],
        arguments,
        temporaries,
        memory,
        "yes" if row["fits"] else "no",
        exchanged,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
