"""Searches for a compact normalizer-free network that is better than EfficientNet-B0 of its size.

    python -m experiments.search --budget=gpu --data_dir=TFDS_DIR

NFNets buy their accuracy with multiply-adds; an EfficientNet is small. The search draws random
designs of normalizer-free networks as large as a small EfficientNet-B0, trains them shortly with
AGC, narrows the space by what it finds, compares finalists with baselines, and scales the winner by
a compound rule that it fits. docs/search.md has the design. An interrupted search resumes. It
leaves ``results.md``, ``results.json``, ``runs.csv``, pictures, and ``nfnet_c.py``, a module that
registers the scaled winner for ImageNet. ``--budget=smoke``, for trying the program out, needs no
data: its networks learn the embedded digits.
"""

import csv
from pathlib import Path

from nfnets_jax.atomic import atomic_write

from .. import process
from ..studies import command, grid, results
from . import family, pictures, report, study


def search(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Searches, and writes the files that a search has beside those of a study."""
    found = study.search(workdir, budget, data_dir)
    write_csv(workdir / "runs.csv", found.rows)
    networks = {}
    if found.final:
        scaled, winner = found.final.scaled, found.final.compared[found.final.winner].network
        networks = family.family(winner.config, scaled.rule)
        remark = f"Scaled from {winner.name} of a search with the budget {budget}."
        registered = {family.SMALL: winner.config, **networks}
        family.write_module(workdir / family.MODULE, registered, remark)
    return results.Results(
        found.conditions, found.rows, report.tables(found, networks), pictures.pictures(found)
    )


def write_csv(file: Path, rows: list[grid.Row]) -> None:
    """Writes all runs; cells without a value are empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    with atomic_write(file) as partial, partial.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(names))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    process.use_cores_as_devices()
    command.run("experiments.search", __doc__, search)
