"""Ours beside the peers at hand, in one run, alternating, as medians of paired ratios.

    python -m benchmarks.compare --rounds=5 --peer_python=PYTHON_WITH_TORCH_AND_TIMM

Writes ``speed_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``. The peer is timm, by
the script ``peers/timm_step.py`` of the shared folder; where that is absent its rows are left out,
and said to be.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import machine
from experiments.shared import shared_folder

_RESULTS = Path(__file__).parent / "results"

Figures = dict[str, Any]


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with torch, timm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    arguments = parser.parse_args()

    shape = [f"--batch={arguments.batch}", f"--size={arguments.size}"]
    step = [sys.executable, "-m", "benchmarks.train_step", *shape]
    step.append(f"--precision={arguments.precision}")
    gradient = [sys.executable, "-m", "benchmarks.compile_time", "--model=nfnet_f6"]
    comparisons: dict[str, tuple[list[str], list[str], int]] = {
        "F0 training step, over plain convolutions": (step, [*step, "--plain", "--steps=2"], 1),
        "F6 gradient's compilation, over unrolled": (gradient, [*gradient, "--unrolled"], 1),
    }
    shared = shared_folder()
    script = shared / "peers" / "timm_step.py" if shared else None
    if script and script.is_file():
        peer = [arguments.peer_python, str(script), *shape, f"--dtype={arguments.precision}"]
        for suffix, flags in (("", []), (" compiled", ["--compile"])):
            if flags and not arguments.compile:
                continue
            for what, mode in (("training step", []), ("forward", ["--forward"])):
                comparisons[f"F0 {what}, over timm{suffix}"] = (
                    [*step, *mode],
                    [*peer, *flags, *mode],
                    arguments.rounds,
                )
    else:
        print("no peers/timm_step.py in the shared folder: rows against timm are left out")

    rows = [_compare(name, *commands) for name, commands in comparisons.items()]
    arguments.out.mkdir(parents=True, exist_ok=True)
    described = {
        **machine.describe(),
        **{key: getattr(arguments, key) for key in ("batch", "size", "precision")},
    }
    stem = arguments.out / ("speed_" + re.sub(r"\W+", "_", described["device"].lower()).strip("_"))
    stem.with_suffix(".json").write_text(json.dumps({**described, "rows": rows}, indent=1) + "\n")
    table = _table(rows, described)
    stem.with_suffix(".md").write_text(table)
    _draw(rows, stem.with_suffix(".png"))
    print(table)


def _compare(name: str, ours: list[str], theirs: list[str], rounds: int) -> Figures:
    """Runs two commands in turn and pairs what they took."""
    pairs = []
    for index in range(rounds):
        pair = _run(ours), _run(theirs)
        pairs.append(pair)
        seconds = [figures["seconds"] for figures in pair]
        print(
            f"{name}: round {index + 1} of {rounds}: {seconds[0]:.3f} s, "
            f"theirs {seconds[1]:.3f} s, ratio {seconds[1] / seconds[0]:.2f}",
            flush=True,
        )
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    return {
        "name": name,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ours": [ours for ours, _ in pairs],
        "theirs": [theirs for _, theirs in pairs],
    }


def _run(command: list[str]) -> Figures:
    """The JSON that a command prints as its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _table(rows: list[Figures], described: Figures) -> str:
    lines = [
        "| | ours, s | theirs, s | speed over theirs | rounds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours, theirs = (
            statistics.median(figures["seconds"] for figures in row[side])
            for side in ("ours", "theirs")
        )
        lines.append(
            f"| {row['name']} | {ours:.2f} | {theirs:.2f} | {row['ratio']:.2f} "
            f"({min(row['ratios']):.2f} to {max(row['ratios']):.2f}) | {len(row['ratios'])} |"
        )
    conditions = ", ".join(f"{key} {value}" for key, value in described.items())
    return (
        "\n".join(lines) + f"\n\nMedians of paired ratios in one run, alternating; {conditions}.\n"
    )


def _draw(rows: list[Figures], file: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained")
    names = [row["name"] for row in rows][::-1]
    axes.barh(names, [row["ratio"] for row in rows][::-1], color="#3b6ea5")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("speed over theirs (1: equal)")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
