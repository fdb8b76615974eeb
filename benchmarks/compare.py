"""Compares our speed with timm's, in alternating runs.

    python -m benchmarks.compare --rounds=5 --peer_python=PYTHON_WITH_TORCH_AND_TIMM

Writes ``speed_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results`` after each row. A row
that fails is omitted with a message, and the exit code is then 1. timm is run by
``peers/timm_step.py`` in the shared folder; if the script or timm is absent, its rows are omitted.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.shared_folder import shared_folder
from nfnets_jax.models.registry import PRECISIONS

RESULTS = Path(__file__).parent / "results"
_UNITS = {"seconds": "s", "images_per_second": "images/s", "decoded_per_second": "images/s"}
# Keys of ``machine.describe``. The commands report them: this process must not occupy the device.
_CONDITIONS = ("date", "device", "processor", "python", "jax", "haiku")

Figures = dict[str, Any]
# A command whose last line is a JSON object, or a function that returns its contents.
Side = list[str] | Callable[[], Figures]


class Comparison(NamedTuple):
    """Two sides that run in turn.

    Attributes:
      ours: also reports the machine, as ``machine.describe`` does.
      theirs: what ours is compared with.
      rounds: runs of each side.
      figure: key of the compared figure in ``_UNITS``.
    """

    ours: Side
    theirs: Side
    rounds: int
    figure: str = "seconds"


class CommandError(Exception):
    """A command failed or printed no figures."""


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with torch, timm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    shape = [f"--batch={arguments.batch}", f"--size={arguments.size}"]
    step = [sys.executable, "-m", "benchmarks.train_step", *shape]
    step.append(f"--precision={arguments.precision}")
    comparisons = {
        "F0 training step, over plain convolutions": Comparison(
            step, [*step, "--plain", "--steps=2"], 1
        ),
    }
    conditions = {key: getattr(arguments, key) for key in ("batch", "size", "precision")}
    try:
        script, versions = peer("timm_step.py", arguments.peer_python, ("torch", "timm"))
    except CommandError as error:
        print(f"rows against timm are omitted: {error}", flush=True)
    else:
        conditions.update(versions)
        theirs = [arguments.peer_python, str(script), *shape, f"--dtype={arguments.precision}"]
        for suffix, flags in (("", []), (" compiled", ["--compile"])):
            if flags and not arguments.compile:
                continue
            for task, mode, folding in (
                ("training step", [], []),
                ("forward", ["--forward"], []),
                ("forward, folded", ["--forward"], ["--folded"]),
            ):
                comparisons[f"F0 {task}, over timm{suffix}"] = Comparison(
                    [*step, *mode, *folding], [*theirs, *flags, *mode], arguments.rounds
                )
    measure(comparisons, conditions, arguments.out / "speed")


def peer(name: str, python: str, packages: Sequence[str]) -> tuple[Path, Mapping[str, str]]:
    """Finds the script that measures a peer, and the versions of the packages that it needs.

    Args:
      name: of the script in ``peers`` of the shared folder.
      python: the interpreter that runs it.
      packages: names of import packages.

    Raises:
      CommandError: the script or a package is absent.
    """
    shared = shared_folder()
    script = shared / "peers" / name if shared else None
    if not script or not script.is_file():
        raise CommandError(f"no peers/{name} in the shared folder, which NFNETS_SHARED names")
    # Looked up, not imported: timm fails to import where the script's torchvision stub is absent.
    found = _run(
        [
            python,
            "-c",
            # The distribution may have another name, such as tensorflow-cpu.
            "import json; from importlib import metadata; names = metadata.packages_distributions()"
            "; print(json.dumps({package: metadata.version(names[package][0]) "
            f"for package in {tuple(packages)} if package in names}}))",
        ]
    )
    absent = [package for package in packages if package not in found]
    if absent:
        raise CommandError(
            f"{python} has no {' and no '.join(absent)}; --peer_python=PYTHON names one that has"
        )
    return script, found


def measure(
    comparisons: Mapping[str, Comparison],
    conditions: Figures,
    out: Path,
    deadline: float = math.inf,
) -> None:
    """Measures one row after the other and writes all rows so far after each.

    Exits with code 1 after the last row if any failed.

    Args:
      comparisons: by name of the row.
      conditions: stated below the table, beside the machine.
      out: path of the files, to which the device and a suffix are added.
      deadline: time of ``time.monotonic`` after which no row begins; those left are named.
    """
    rows: list[Figures] = []
    failed = []
    for name, comparison in comparisons.items():
        if time.monotonic() > deadline:
            print(f"{name}: omitted: no time is left", flush=True)
            continue
        try:
            rows.append(_compare(name, comparison))
        except CommandError as error:
            failed.append(name)
            print(f"{name}: omitted: {error}", flush=True)
        else:
            _write(rows, conditions, out)
    if rows:
        print(_table(rows, conditions))
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


def _compare(name: str, comparison: Comparison) -> Figures:
    """Runs both sides in turn and returns all figures and the ratios of each round."""
    unit = _UNITS[comparison.figure]
    pairs, ratios = [], []
    for index in range(comparison.rounds):
        pair = _run(comparison.ours), _run(comparison.theirs)
        pairs.append(pair)
        ours, theirs = (figures[comparison.figure] for figures in pair)
        ratios.append(theirs / ours if unit == "s" else ours / theirs)
        print(
            f"{name}: round {index + 1} of {comparison.rounds}: {_rounded(ours)} {unit}, "
            f"theirs {_rounded(theirs)} {unit}, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    return {
        "name": name,
        "figure": comparison.figure,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ours": [ours for ours, _ in pairs],
        "theirs": [theirs for _, theirs in pairs],
    }


def _run(side: Side) -> Figures:
    """Returns the JSON in the last line of a command's output, or a function's result."""
    if callable(side):
        return side()
    try:
        done = subprocess.run(side, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        reason = error.stderr[-2000:]
    except OSError as error:
        reason = str(error)
    except (IndexError, ValueError):
        reason = "its last line is not JSON"
    raise CommandError(f"{' '.join(side)} failed:\n{reason}")


def _write(rows: list[Figures], conditions: Figures, out: Path) -> None:
    """Writes figures, table and picture of the rows, replacing those before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    described = _described(rows, conditions)
    device = re.sub(r"\W+", "_", described["device"].lower()).strip("_")
    stem = out.with_name(f"{out.name}_{device}")
    stem.with_suffix(".json").write_text(json.dumps({**described, "rows": rows}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(_table(rows, conditions))
    _draw(rows, stem.with_suffix(".png"))


def _described(rows: list[Figures], conditions: Figures) -> Figures:
    """Returns the conditions of all rows and the machine that the first one reports."""
    return {**{key: rows[0]["ours"][0][key] for key in _CONDITIONS}, **conditions}


def _table(rows: list[Figures], conditions: Figures) -> str:
    lines = [
        "| | ours | theirs | speed over theirs | rounds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours, theirs = (
            _rounded(statistics.median(figures[row["figure"]] for figures in row[side]))
            for side in ("ours", "theirs")
        )
        unit = _UNITS[row["figure"]]
        lines.append(
            f"| {row['name']} | {ours} {unit} | {theirs} {unit} | {row['ratio']:.2f} "
            f"({min(row['ratios']):.2f} to {max(row['ratios']):.2f}) | {len(row['ratios'])} |"
        )
    listed = ", ".join(f"{key} {value}" for key, value in _described(rows, conditions).items())
    explanation = (
        "The sides run in turn, once per round. Figures are medians over the rounds; in "
        "parentheses, the lowest and the highest ratio of a round."
    )
    return "\n".join([*lines, "", explanation, "", f"Conditions: {listed}.", ""])


def _rounded(figure: float) -> str:
    return f"{figure:.2f}" if figure < 100 else f"{figure:,.0f}"


def _draw(rows: list[Figures], file: Path) -> None:
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [row["name"] for row in rows][::-1]
    axes.barh(names, [row["ratio"] for row in rows][::-1], color="#3b6ea5")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("speed over theirs (1: equal)")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
