import argparse
from pathlib import Path

import pytest

from benchmarks import compare, gpu, scale, train_step
from benchmarks.compare import Comparison


def arguments(**changes: object) -> argparse.Namespace:
    values = {"smoke": True, "peer_python": "python", "rounds": 1, "images": ""}
    return argparse.Namespace(**{**values, **changes})


def test_rows_without_their_peer_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> None:
        raise compare.CommandError("no timm")

    monkeypatch.setattr(compare, "peer", absent)
    rows = gpu.comparisons(arguments(images="folder"))
    assert "F0 training, over F0 that normalizes batches" in rows
    assert any(row.figure == "images_per_second" for row in rows.values())
    assert "F3 inference, over timm, torch.compile: omitted: no timm" in capsys.readouterr().out


def test_rates_are_those_of_this_machine() -> None:
    found = gpu.facts(smoke=True)
    assert found.keys() == {
        "TFLOP/s of float32 products",
        "TFLOP/s of tensorfloat32 products",
        "TFLOP/s of bfloat16 products",
        "GB/s of memory",
    }
    assert found["GB/s of memory"] > 0


def test_no_row_begins_after_the_deadline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Comparison(lambda: pytest.fail("it ran"), lambda: {}, 1)
    compare.measure({"late": row}, {}, tmp_path / "out", deadline=0)
    assert "late: omitted: no time is left" in capsys.readouterr().out


@pytest.mark.slow
def test_batches_are_normalized_on_request() -> None:
    settings = {"model": "nfnet_micro", "batch": 4, "size": 16, "steps": 1, "remat": "none"}
    flags = {"forward": False, "folded": False, "plain": False, "precision": "float32"}
    figures = train_step.measure(argparse.Namespace(**settings, **flags, batch_norm=True))
    assert figures["seconds"] > 0


def test_a_plan_is_a_row_of_the_table() -> None:
    plan = {
        "model": "nfnet_f0",
        "target": "v4:4x4x4",
        "devices": 128,
        "batch_size": 4096,
        "micro_batch_size": 16,
        "argument_bytes": 860_000_000,
        "temporary_bytes": 1_390_000_000,
        "device_bytes": 17_179_869_184,
        "fits": True,
        "collective_bytes": 286_000_000,
    }
    machine = {"date": "2026-11-26", "processor": "EPYC", "python": "3.11", "jax": "0.10.2"}
    row = "| nfnet_f0 | v4:4x4x4 | 128 | 32 | 16 | 0.86 | 1.39 | 17.18 | yes | 0.29 |"
    assert row in scale.table([{**plan, **machine}])
