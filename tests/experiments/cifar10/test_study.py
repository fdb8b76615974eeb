import csv
from pathlib import Path

import pytest

from experiments.cifar10 import study as cifar10
from nfnets_jax.errors import InputError


@pytest.mark.slow
def test_each_seed_is_a_command_of_its_own(tmp_path: Path) -> None:
    cifar10.study(tmp_path, "smoke", None)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert all(float(row["minutes"]) > 0 for row in rows)
    assert "reached" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 0


def test_a_run_that_fails_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"experiments.run .* ended with exit code 1"):
        cifar10.study(tmp_path, "smoke", tmp_path / "nothing")
    assert not (tmp_path / "report.md").exists()
