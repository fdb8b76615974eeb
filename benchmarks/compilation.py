"""Compares the compilation time of NFNet-F6 with that of two other forms, in alternating runs.

    python -m benchmarks.compilation --rounds=5

In one form every block is unrolled; in the other equal blocks run in loops, but each layer has its
own array. Writes ``compilation_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.compare import RESULTS, Comparison, measure


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    gradient = [sys.executable, "-m", "benchmarks.compile_time", "--model=nfnet_f6"]
    update = [*gradient, "--update"]
    comparisons = {
        "F6's gradient, over unrolled": Comparison(
            gradient, [*gradient, "--unrolled"], arguments.rounds
        ),
        "F6's gradient, over an array a layer": Comparison(
            gradient, [*gradient, "--published"], arguments.rounds
        ),
        # One round: it takes minutes.
        "F6's update, over an array a layer": Comparison(update, [*update, "--published"], 1),
    }
    measure(comparisons, {}, arguments.out / "compilation")


if __name__ == "__main__":
    main()
