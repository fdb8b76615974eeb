import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does, on one device."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": "", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nfnet_digit"], "no configuration 'nfnet_digit'; nearest: nfnet_digits"),
        (["--config=lm"], "no configuration 'lm'; "),
        (["--config", "nfnet_digits", "--config.batchsize=3"], "no 'batchsize'; nearest: batch_s"),
        (["--config.batch_size=many"], "--config.batch_size=many: "),
        (["--config=nfnet_f0", "--config.model.name=nfnet_f9"], "no model 'nfnet_f9'; nearest: "),
        (["--config.imports=nowhere.to.be"], "'nowhere.to.be', which cannot be imported: "),
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


OWN = """
import ml_collections

def get_config({argument}):
    return ml_collections.ConfigDict({{"width": {value}}})
"""


@pytest.mark.parametrize(("argument", "suffix", "name"), [("", "", "mine"), ("x", ":big", "big")])
def test_a_file_of_ones_own_is_a_configuration(
    argument: str, suffix: str, name: str, tmp_path: Path
) -> None:
    """Parsed as ``main`` finds it: fields, overrides, and the name of the default workdir."""
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(argument=argument, value=f"len({argument or '()'})"))
    program = (
        "import sys; from experiments import run;"
        "run.parse(sys.argv); print(run._CONFIG.value.width, run._name())"
    )
    command = [sys.executable, "-c", program, f"--config={file}{suffix}"]
    for override, width in (([], 3 if argument else 0), (["--config.width=7"], 7)):
        done = subprocess.run([*command, *override], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.stdout == f"{width} {name}\n", done.stderr
    wrong = [*command, "--config.widht=7"]
    done = subprocess.run(wrong, cwd=REPOSITORY, capture_output=True, text=True)
    assert "no 'widht'; nearest: width" in done.stderr


def test_modules_of_imports_are_imported_before_anything_is_built(tmp_path: Path) -> None:
    for module in ("first", "second"):
        (tmp_path / f"{module}_project.py").write_text(f"print('{module}')")
    (tmp_path / "broken_project.py").write_text("raise ValueError('two\\nlines')")
    flags = ["--config.imports=first_project", "--config.imports=second_project"]
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    result = run(*flags, "--config.model.name=nfnet_f9", PYTHONPATH=path)
    assert result.stdout == "first\nsecond\n"
    assert result.stderr.startswith("error: no model 'nfnet_f9'")
    broken = run("--config.imports=broken_project", PYTHONPATH=path)
    assert broken.returncode == 1
    reason = "which cannot be imported: ValueError: two"
    assert broken.stderr == f"error: imports has 'broken_project', {reason}\n"


@pytest.mark.parametrize(
    ("num_steps", "accuracy"), [(100, 0.9), pytest.param(600, 0.98, marks=pytest.mark.slow)]
)
def test_the_first_try_learns_the_digits(tmp_path: Path, num_steps: int, accuracy: float) -> None:
    steps = f"--config.num_steps={num_steps}"
    result = run("--config=nfnet_digits", steps, f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test"]["top1"] >= accuracy
    assert summary["test"]["ema_top1"] >= accuracy
    assert str(tmp_path / "curves.png") in result.stdout
    assert "463,949" in result.stdout  # parameters, in the table of the model
    assert str(tmp_path / "checkpoints" / str(num_steps)) in result.stdout


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
