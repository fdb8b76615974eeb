from pathlib import Path

import pytest

from experiments.cifar10 import study as cifar10
from nfnets_jax.errors import InputError


@pytest.mark.slow
def test_each_seed_is_a_command_of_its_own(tmp_path: Path) -> None:
    found = cifar10.study(tmp_path, "smoke", None)
    assert [row["seed"] for row in found.rows] == [0, 1]
    assert all(row["minutes"] > 0 for row in found.rows)
    assert list(found.pictures) == ["accuracy"]


def test_a_run_that_fails_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"experiments.cifar10.train .* ended with exit code 1"):
        cifar10.study(tmp_path, "smoke", tmp_path / "nothing")
