import json
import sys
from pathlib import Path

import pytest

from benchmarks import compare

MACHINE = dict.fromkeys(("date", "processor", "python", "jax", "haiku"), "x") | {"device": "A chip"}
FAILS = [sys.executable, "-c", "raise SystemExit('out of memory')"]
PACKAGES = ("torch", "timm")
COUNTS_SAVED_ROWS = """
import json, sys
print(json.dumps({"seconds": len(json.load(open(sys.argv[1]))["rows"])}))
"""


def prints(**figures: float | str) -> list[str]:
    """Returns a command that prints these figures in its last line."""
    return [sys.executable, "-c", "import sys; print(sys.argv[1])", json.dumps(figures)]


def test_each_row_is_saved_before_the_next_and_a_failing_one_is_omitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed_a_chip.json"
    ours = prints(seconds=2.0, **MACHINE)
    counts = [sys.executable, "-c", COUNTS_SAVED_ROWS, str(file)]
    comparisons = {
        "first": compare.Comparison(ours, prints(seconds=3.0), 2),
        "second": compare.Comparison(ours, FAILS, 1),
        "third": compare.Comparison(ours, counts, 1),
    }
    with pytest.raises(SystemExit, match="^failed: second$"):
        compare.measure(comparisons, {"batch": 8, "torch": "2.0"}, tmp_path / "speed")

    output = capsys.readouterr().out
    assert "second: omitted" in output
    assert "out of memory" in output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["name"], row["ratio"]) for row in rows] == [("first", 1.5), ("third", 0.5)]
    table = file.with_suffix(".md").read_text()
    assert "| first | 2.00 s | 3.00 s | 1.50 (1.50 to 1.50) | 2 |" in table
    assert "batch 8, torch 2.0" in table
    assert file.with_suffix(".png").stat().st_size > 0


def test_a_higher_rate_is_a_higher_speed(tmp_path: Path) -> None:
    ours, theirs = prints(images_per_second=300, **MACHINE), prints(images_per_second=200)
    row = compare.Comparison(ours, theirs, 1, "images_per_second")
    compare.measure({"reading": row}, {}, tmp_path / "input")
    table = (tmp_path / "input_a_chip.md").read_text()
    assert "| reading | 300 images/s | 200 images/s | 1.50 (1.50 to 1.50) | 1 |" in table


@pytest.fixture
def shared_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NFNETS_SHARED", str(tmp_path))
    script = tmp_path / "peers" / "timm_step.py"
    script.parent.mkdir()
    script.touch()
    return script


def python_with(folder: Path, **versions: str) -> str:
    """Returns an interpreter that prints these versions whatever it runs."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\necho '{json.dumps(versions)}'\n")
    file.chmod(0o755)
    return str(file)


def test_a_peer_has_a_script_and_versions(shared_peer: Path, tmp_path: Path) -> None:
    python = python_with(tmp_path, torch="2.0", timm="1.0")
    assert compare.peer("timm_step.py", python, PACKAGES) == (
        shared_peer,
        {"torch": "2.0", "timm": "1.0"},
    )


def test_an_absent_peer_is_named_in_the_error(shared_peer: Path, tmp_path: Path) -> None:
    with pytest.raises(compare.CommandError, match="has no timm; --peer_python=PYTHON"):
        compare.peer("timm_step.py", python_with(tmp_path, torch="2.0"), PACKAGES)
    with pytest.raises(compare.CommandError, match="No such file"):
        compare.peer("timm_step.py", str(tmp_path / "none"), PACKAGES)
    shared_peer.unlink()
    with pytest.raises(compare.CommandError, match="NFNETS_SHARED"):
        compare.peer("timm_step.py", sys.executable, PACKAGES)
