import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, on one device."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nfnet_digit"], "no configuration 'nfnet_digit'; nearest: nfnet_digits"),
        (["--config", "nfnet_digits", "--config.batchsize=3"], "no 'batchsize'; nearest: batch_s"),
        (["--config.batch_size=many"], "--config.batch_size=many: "),
        (["--config=nfnet_f0", "--config.model.name=nfnet_f9"], "no model 'nfnet_f9'; nearest: "),
        (["--confg=nfnet_f0"], "Unknown command line flag 'confg'"),
        (["nfnet_f0"], "'nfnet_f0' is no flag"),
    ],
)
def test_bad_input_ends_with_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_first_try_learns_the_digits(tmp_path: Path) -> None:
    result = run("--config=nfnet_digits", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test"]["top1"] >= 0.98
    assert summary["test"]["ema_top1"] >= 0.98
    assert str(tmp_path / "curves.png") in result.stdout
    assert "463,949" in result.stdout  # parameters, in the table of the model
    assert str(tmp_path / "checkpoints" / "600") in result.stdout


@pytest.mark.slow
def test_f0_trains_on_photographs(shared: Path, tmp_path: Path) -> None:
    result = run(
        "--config=nfnet_f0",
        "--config.data.name=folder",
        f"--config.data.dir={shared / 'data/imagenet-samples/train'}",
        "--config.batch_size=8",
        "--config.num_steps=3",
        f"--workdir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 3
    assert 4 < row["loss"] < 7
