import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nfnets_jax
from experiments import model_table
from experiments.published_results import PUBLISHED, Published

FIGURES = {
    "seconds": 1.5,
    "date": "2026-01-01",
    "device": "cpu",
    "processor": "some",
    "python": "3",
    "jax": "1",
    "haiku": "2",
    "batch": 8,
    "precision": "float32",
}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records the timing commands in place of running them; nfnet_f1 runs out of memory."""
    recorded = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        recorded.append(command[3:])
        if "--model=nfnet_f1" in command:
            return subprocess.CompletedProcess(command, 1, "", "...\nout of memory\n")
        return subprocess.CompletedProcess(command, 0, f"warming up\n{json.dumps(FIGURES)}\n", "")

    monkeypatch.setattr(model_table.subprocess, "run", run)
    return recorded


def make(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["model_table", f"--out={folder}", *flags])
    model_table.main()


@pytest.mark.slow
def test_table_has_counts_times_and_published_results(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    commands: list[list[str]],
) -> None:
    only = "--models=*[ft]net_[fb][01]"
    with_sam = Published(83.9, None, None, None, "", "with SAM")
    more = {**PUBLISHED, "nfnet_f0": (*PUBLISHED["nfnet_f0"], with_sam)}
    monkeypatch.setattr(model_table, "PUBLISHED", more)
    make(monkeypatch, tmp_path, only, "--measure=nfnet_f0", "--remark=idle")
    table = capsys.readouterr().out
    assert (tmp_path / "model_table.md").read_text() + "\n" == table
    assert "| nfnet_f0 | 71.49 | 192 / 256 | 12.38 | 18.0 | 1.5 | 1.5 | 83.6 | 96.8 |" in table
    assert "| efficientnet_b0 | 5.29 | 224 / 224 | 0.39 |" in table
    assert "Measured seconds per batch of nfnet_f0" in table and "date 2026-01-01" in table
    assert "precision float32; idle." in table
    with (tmp_path / "model_table.csv").open() as lines:
        rows = {row["model"]: row for row in csv.DictReader(lines)}
    assert rows["nfnet_f0"]["parameters"] == "71489284"
    assert rows["nfnet_f0"]["multiply_adds"] == "12384198656"
    assert "| nfnet_f0 with SAM | 71.49 | 192 / 256 | 12.38 | 18.0 |  |  | 83.9 |  |" in table
    assert "| batch-normalized NFNet | 83.4, 111.7 | 84.4, 258.0 |" in table
    assert rows["efficientnet_b1"]["top5"] == rows["nfnet_f1"]["training_seconds"] == ""
    for name in ("training_step", "parameters", "multiply_adds"):
        picture = tmp_path / "images" / f"accuracy_by_{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert ["--forward" in command for command in commands] == [False, True]
    assert "--size=192" in commands[0] and "--size=256" in commands[1]

    # nfnet_f0 is not timed again; nfnet_f1 fails and is omitted.
    with pytest.raises(SystemExit, match="failed: nfnet_f1"):
        make(monkeypatch, tmp_path, only, "--measure=nfnet_f0,nfnet_f1")
    assert "nfnet_f1 is omitted: " in capsys.readouterr().err
    assert sum("--model=nfnet_f0" in command for command in commands) == 2


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no name of a model for ImageNet matches 'nfnet_m"):
        make(monkeypatch, tmp_path, "--models=nfnet_micro")
    with pytest.raises(SystemExit, match="--measure: no model 'nfnet_f9'; nearest: .*nfnet_f"):
        make(monkeypatch, tmp_path, "--models=nfnet_f0", "--measure=nfnet_f9")
    (tmp_path / "model_table.json").write_text("{")
    with pytest.raises(SystemExit, match="model_table.json is not JSON"):
        make(monkeypatch, tmp_path, "--models=nfnet_f0")


def test_published_results_are_of_registered_models_and_grow_with_size() -> None:
    assert set(PUBLISHED) <= set(nfnets_jax.list_models())
    for family in (r"nfnet_f\d", r"nfnet_f\d_bn", r"efficientnet_b\d"):
        named = [results for name, results in PUBLISHED.items() if re.fullmatch(family, name)]
        results = [result for results in named for result in results]
        for field in ("top1", "top5", "tpu_ms", "gpu_ms"):
            known = [value for result in results if (value := getattr(result, field)) is not None]
            assert known == sorted(known)
