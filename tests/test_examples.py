"""Every program in examples/ runs, and what it trains improves."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_learns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    losses = re.findall(r"loss (?:before|after): +([\d.]+)", printed)
    if losses:
        before, after = map(float, losses)
        assert after < before / 4
    else:
        (accuracy,) = re.findall(r"accuracy .*: ([\d.]+)%", printed)
        assert float(accuracy) > 50  # Five classes: chance is 20%.
