"""How long NFNet-F6 takes to compile, beside other forms of itself, in alternating runs.

    python -m benchmarks.compilation --rounds=5

The others have every block unrolled, or loops but an array a layer. Writes
``compilation_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``, as
``benchmarks.compare`` does.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.compare import RESULTS, Comparison, measure


def main() -> None:
    """Measures, and writes the table."""
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
        # Takes minutes.
        "F6's update, over an array a layer": Comparison(update, [*update, "--published"], 1),
    }
    measure(comparisons, {}, arguments.out / "compilation")


if __name__ == "__main__":
    main()
