import sys
from pathlib import Path

import pytest

from experiments.studies import command, finetune, results


@pytest.mark.slow
def test_the_smoke_study_learns_in_each_way(tmp_path: Path) -> None:
    found = finetune.study(tmp_path, "smoke", None)
    assert [row["way"] for row in found.rows] == list(finetune.WAYS)
    assert all(row["top1"] > 0.2 for row in found.rows)  # Chance, of five classes.
    results.write(tmp_path, "command", found)
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {way} |" in table for way in finetune.WAYS)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_no_image_is_both_for_training_and_for_testing(tmp_path: Path) -> None:
    budget = finetune.BUDGETS["smoke"]._replace(examples=3, tests=2, seeds=2)
    finetune.write_images(tmp_path, "digits", None, budget)
    counts = {
        part: {label.name: len(list(label.iterdir())) for label in (tmp_path / part).iterdir()}
        for part in ("first", "few-0", "few-1", "test-first", "test-few")
    }
    assert set(counts["first"]) == set(counts["test-first"]) == set("01234")
    assert counts["few-0"] == counts["few-1"] == dict.fromkeys("56789", 3)
    assert counts["test-few"] == dict.fromkeys("56789", 2)
    images = {
        part: {path.read_bytes() for path in (tmp_path / part).rglob("*.png")} for part in counts
    }
    assert images["few-0"] != images["few-1"]
    assert not images["few-0"] & images["test-few"]
    assert not images["first"] & images["test-first"]


def test_bad_input_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [f"--workdir={tmp_path / 'study'}", f"--data_dir={tmp_path / 'nowhere'}"]
    monkeypatch.setattr(sys, "argv", ["finetune", *flags])
    with pytest.raises(SystemExit) as caught:
        command.run("finetune", "A study.", finetune.study)
    assert str(caught.value.code).startswith(f"error: no folder {tmp_path / 'nowhere'}: ")
    assert "\n" not in str(caught.value.code)
