import itertools
import sys
from pathlib import Path

import pytest

from experiments.studies import command, finetune, results


@pytest.mark.slow
def test_the_smoke_study_learns_in_each_way(tmp_path: Path) -> None:
    found = finetune.study(tmp_path, "smoke", None)
    final = [row for row in found.rows if row["images"] == "few-0"]
    expected = list(itertools.product(finetune.ARMS, finetune.WAYS))
    assert [(row["arm"], row["way"]) for row in final] == expected
    assert all(row["top1"] > 0.2 for row in final)  # Chance, of five classes.
    results.write(tmp_path, "command", found)
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {way} |" in table for way in finetune.WAYS)
    assert (tmp_path / "accuracy.png").stat().st_size > 0


def test_the_best_rate_is_the_lowest_of_equals() -> None:
    rows = [
        {"arm": arm, "way": "all layers", "learning_rate": rate, "top1": top1}
        for arm, rate, top1 in [("a", 0.4, 0.5), ("a", 0.2, 0.5), ("a", 0.1, 0.4), ("b", 0.8, 0.9)]
    ]
    assert finetune.best_rate(rows, "a", "all layers") == 0.2


def test_no_image_is_both_for_training_and_for_testing(tmp_path: Path) -> None:
    budget = finetune.BUDGETS["smoke"]._replace(examples=3, tests=2, seeds=2)
    finetune.write_images(tmp_path, "digits", None, budget)
    counts = {
        part.name: {label.name: len(list(label.iterdir())) for label in part.iterdir()}
        for part in tmp_path.iterdir()
        if part.is_dir()
    }
    assert set(counts["first"]) == set(counts["test-first"]) == set("01234")
    assert counts["test-first"] == dict.fromkeys("01234", 2)
    for part in ("few-0", "few-1", "tune"):
        assert counts[part] == dict.fromkeys("56789", 3)
    assert counts["test-few"] == counts["test-tune"] == dict.fromkeys("56789", 2)
    images = {
        part: {path.read_bytes() for path in (tmp_path / part).rglob("*.png")} for part in counts
    }
    assert images["few-0"] != images["few-1"]
    for part, others in {
        "test-few": ("few-0", "few-1", "tune", "test-tune"),
        "test-tune": ("tune",),
        "test-first": ("first",),
    }.items():
        assert not any(images[part] & images[other] for other in others)


def test_bad_input_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [f"--workdir={tmp_path / 'study'}", f"--data_dir={tmp_path / 'nowhere'}"]
    monkeypatch.setattr(sys, "argv", ["finetune", *flags])
    with pytest.raises(SystemExit) as caught:
        command.run("finetune", "A study.", finetune.study)
    assert str(caught.value.code).startswith(f"error: no folder {tmp_path / 'nowhere'}: ")
    assert "\n" not in str(caught.value.code)
