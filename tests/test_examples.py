"""Every program in examples/ runs as its users run it, and what it trains improves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "finetune"))
        for path in sorted((ROOT / "examples").glob("*.py"))
    ],
)
def test_example_learns(path: Path) -> None:
    # The flags of the tests make compilation fast and training slow.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(ROOT)
    printed = subprocess.run(
        [sys.executable, path], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    losses = re.findall(r"loss (?:before|after): +([\d.]+)", printed)
    if losses:
        before, after = map(float, losses)
        assert after < before / 4
    else:
        (accuracy,) = re.findall(r"accuracy .*: ([\d.]+)%", printed)
        assert float(accuracy) > 50  # Of five classes, chance finds 20%.
