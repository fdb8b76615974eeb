"""Compares folded networks with unfolded ones and with timm's, for one image and for many.

    python -m benchmarks.inference --rounds=3 --peer_python=PYTHON_WITH_TORCH_AND_TIMM

Unfolded is ``Model.apply``, which standardizes the kernels for each batch, as timm does.
Writes ``inference_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``, as
``benchmarks.compare`` does.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.compare import RESULTS, CommandError, Comparison, measure, peer

# Images at once, and how often each side does them a round.
_BATCHES = {1: 20, 32: 3}


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with torch, timm")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    conditions = {"size": arguments.size}
    try:
        script, versions = peer("timm_step.py", arguments.peer_python, ("torch", "timm"))
        conditions.update(versions)
    except CommandError as error:
        print(f"rows against timm are left out: {error}", flush=True)
        script = None
    comparisons = {}
    for batch, steps in _BATCHES.items():
        shape = [f"--batch={batch}", f"--size={arguments.size}", f"--steps={steps}", "--forward"]
        unfolded = [sys.executable, "-m", "benchmarks.train_step", *shape]
        folded = [*unfolded, "--folded"]
        name = f"F0 folded, batch {batch}, over"
        comparisons[f"{name} unfolded"] = Comparison(folded, unfolded, arguments.rounds)
        if script:
            theirs = [arguments.peer_python, str(script), *shape]
            comparisons[f"{name} timm"] = Comparison(folded, theirs, arguments.rounds)
    measure(comparisons, conditions, arguments.out / "inference")


if __name__ == "__main__":
    main()
