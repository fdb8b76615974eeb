import random
from pathlib import Path

import pytest

from benchmarks import survival


@pytest.mark.slow
def test_three_kills_and_a_damaged_checkpoint_change_nothing(tmp_path: Path) -> None:
    run = survival.Run(tmp_path, steps=2000, checkpoint_every=50)
    starts = run.survive(kills=3, damages=1, moments=random.Random(0))
    assert run.faults(starts, kills=3) == []
    assert [start.ended.split()[0] for start in starts] == ["killed"] * 3 + ["finished"]
    assert sum(bool(start.damage) for start in starts) == 1
    assert starts[-1].resumed > 0
    table = survival._table(starts, [], checkpoint_every=50)
    assert "3 kills, 1 damaged checkpoints: parameters and metrics are those" in table


def test_differences_are_reported(tmp_path: Path) -> None:
    run = survival.Run(tmp_path, steps=10, checkpoint_every=5)
    for name, sha, loss in (("calm", "a", 1.0), ("rough", "b", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(f'{{"params_sha256": "{sha}"}}')
        row = f'{{"step": 10, "split": "train", "loss": {loss}, "data_wait": {loss}}}\n'
        (tmp_path / name / "metrics.jsonl").write_text(row)
    starts = [survival.Start("", 0, 7, "killed"), survival.Start("", 5, 10, "failed: no disk")]
    assert run.faults(starts, kills=2) == [
        "start 2: failed: no disk",
        "only 1 of 2 kills came before the end: take more steps",
        "the parameters differ",
        "the metrics differ",
    ]
    assert "| 1 |  | 0 | 7 | 2 | killed |" in survival._table(starts, [], 5)
