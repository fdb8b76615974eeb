import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.studies import batch_scaling, results
from experiments.studies.batch_scaling import FREE, NORMALIZED
from nfnets_jax.models import counting


@pytest.mark.slow
def test_the_smoke_study_finds_a_rate_of_every_arm(tmp_path: Path) -> None:
    results.write(tmp_path, "command", batch_scaling.study(tmp_path, "smoke", None))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    arms = {(row["network"], row["clipping"], row["batch_size"]) for row in rows}
    assert len(arms) == 3 * 2  # At two batch sizes.
    assert "| AGC 0.01 |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("rungs", [1, 6, 31])
def test_bisection_finds_the_highest_stable_rung_of_every_ladder(rungs: int) -> None:
    limits = range(-1, rungs)  # Every answer there is.
    asked: list[int] = []

    def are_stable(tried: Sequence[int], places: Sequence[int]) -> list[bool]:
        asked.append(len(tried))
        return [rung <= limits[place] for rung, place in zip(tried, places, strict=True)]

    assert batch_scaling.bisect(are_stable, len(limits), rungs) == list(limits)
    assert len(asked) == math.ceil(math.log2(rungs + 1))


def row(clipping: float, seed: int, rate: float, loss: float | None) -> dict[str, object]:
    point = {"network": FREE, "batch_size": 64, "blocks": 8}
    return {**point, "clipping": clipping, "seed": seed, "learning_rate": rate, "loss": loss}


def test_the_largest_stable_rate_is_that_of_the_runs_below_chance() -> None:
    rows = [
        row(0, 0, 0.5, 2.0),
        row(0, 0, 1.0, 2.31),
        row(0, 1, 0.5, 2.1),
        row(0, 1, 1.0, 2.2),
        row(0, 1, 2.0, None),
        row(0.01, 0, 4.0, 2.0),
        row(0.01, 1, 8.0, 2.0),
    ]
    limits = batch_scaling.largest_rates(rows)
    assert limits == {(FREE, 64, 8): [0.5, 1.0], ("AGC 0.01", 64, 8): [4.0, 8.0]}
    # Ratios of geometric means: sqrt(32) over sqrt(0.5).
    assert "| 8 | 64 | AGC 0.01 | 8 (4 to 16) |" in batch_scaling.ratio_table(limits)


def test_both_networks_have_the_same_convolutions() -> None:
    design = batch_scaling.BUDGETS["cpu"]
    multiply_adds = [
        counting.summarize(
            batch_scaling.create_model(design, network, blocks=2), design.image_size
        ).work.multiply_adds
        for network in (NORMALIZED, FREE)
    ]
    assert multiply_adds[0] == multiply_adds[1]
